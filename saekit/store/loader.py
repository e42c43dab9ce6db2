"""ActivationLoader: shuffled batches of a store's rows, read ahead in a thread, that resumes where it stopped."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.errors import ConfigError, StoreError
from saekit.store.background import read_ahead
from saekit.store.format import shard_name
from saekit.store.shuffle import Permutation

if TYPE_CHECKING:
    from saekit.store.reader import ActivationStore

BLOCK_BYTES = 2**26
"""Rows are fetched in blocks of about this size, sorted by their place on disk inside a block."""
N_READERS = 2
_SIGNED = {2: torch.int16, 4: torch.int32}


class ActivationLoader(Iterator[Tensor]):
    """Batches `[batch_size width]` of rows in an order shuffled over the whole store, a new one in every epoch.

    Every row comes once per epoch; batches run across the end of an epoch, so all are full, except the last one when
    `n_tokens` (rows in total) is given. The order depends on `seed` and the rows alone, not on `batch_size`, threads
    or speed. `rows` restricts it to some row numbers (an int64 array, any order).

    Batches are in the stored type unless `dtype` is given; with a CUDA `device` they are copied from pinned memory
    without waiting. Raises `StoreError` for a NaN or an infinity, naming the shard and row. Close it, or use it as a
    context manager, to end its thread; the next batch starts another.
    """

    def __init__(
        self,
        store: "ActivationStore",
        batch_size: int,
        *,
        seed: int = 0,
        hook_point: str | None = None,
        n_tokens: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        prefetch: int = 2,
        rows: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        if batch_size < 1 or prefetch < 1 or (n_tokens is not None and n_tokens < 1):
            raise ConfigError(f"batch_size={batch_size}, prefetch={prefetch}, n_tokens={n_tokens}; all are at least 1.")
        if rows is not None and len(rows) == 0:
            raise ConfigError("rows is empty; nothing is left to load.")
        self.store, self.batch_size, self.seed, self.n_tokens = store, batch_size, seed, n_tokens
        self.hook_point = store.resolve(hook_point)
        self.device, self.dtype, self.prefetch = torch.device(device), dtype, prefetch
        self.n_rows = store.n_rows if rows is None else len(rows)
        """Rows of an epoch."""
        self.n_seen = 0
        """Rows handed out so far, over all epochs: the cursor."""
        self._subset = rows
        self._ahead: Generator[Tensor, None, None] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next row, from 0."""
        return self.n_seen // self.n_rows

    def __next__(self) -> Float[Tensor, "batch width"]:
        if self._ahead is None:
            # The thread holds no reference to the loader, so that one dropped without close() ends its thread too.
            batches = _Source(self).batches(self.n_seen, self.n_tokens)
            self._ahead = read_ahead(batches, self.prefetch)
        try:
            batch = next(self._ahead)
        except BaseException:
            self._ahead = None
            raise
        self.n_seen += len(batch)
        return batch.to(self.device, self.dtype, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the last batch that was handed out (what was only read ahead does not count)."""
        return {**self._identity(), "n_seen": self.n_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises `StoreError` when it is of another store, hook point, seed or rows."""
        wrong = [
            f"{key}: {state.get(key)!r} in the state, {own!r} here"
            for key, own in self._identity().items()
            if state.get(key) != own
        ]
        if wrong:
            raise StoreError(
                f"This state belongs to another reading than this of {self.store.path} ({'; '.join(wrong)})."
            )
        self.close()
        self.n_seen = int(state["n_seen"])

    def close(self) -> None:
        """End the thread and wait for it."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __enter__(self) -> "ActivationLoader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _identity(self) -> dict[str, Any]:
        return {
            "store_hash": self.store.content_hash,
            "hook_point": self.hook_point,
            "seed": self.seed,
            "n_rows": self.n_rows,
        }


class _Source:
    """Makes the batches, in the loader's thread."""

    def __init__(self, loader: ActivationLoader) -> None:
        self.store, self.hook_point, self.seed = loader.store, loader.hook_point, loader.seed
        self.batch_size, self.n_rows, self.subset = loader.batch_size, loader.n_rows, loader._subset
        self.pin = loader.device.type == "cuda"
        width, dtype = self.store.d_model(self.hook_point), self.store.maps(self.hook_point)[0].dtype
        n_batches = max(1, BLOCK_BYTES // (width * dtype.itemsize * self.batch_size))
        self.block = np.empty((n_batches * self.batch_size, width), dtype=dtype)

    def batches(self, start: int, stop: int | None) -> Generator[Tensor, None, None]:
        """Batches of the endless shuffled order from place `start` on, up to `stop`."""
        with ThreadPoolExecutor(N_READERS, thread_name_prefix="saekit-reader") as readers:
            while stop is None or start < stop:
                end = start + len(self.block) if stop is None else min(start + len(self.block), stop)
                rows = self._rows(start, end)
                places = self._fetch(rows, readers)
                for first in range(0, len(rows), self.batch_size):
                    which = slice(first, min(first + self.batch_size, len(rows)))
                    batch = self._pick(places[which])
                    self._check(batch, rows[which])
                    yield batch
                start = end

    def _rows(self, start: int, end: int) -> Int[np.ndarray, " n"]:
        """The row numbers at places `start` to `end` of the endless shuffled order."""
        parts = []
        while start < end:
            epoch, position = divmod(start, self.n_rows)
            n = min(end - start, self.n_rows - position)
            parts.append(Permutation(self.n_rows, self.seed, epoch).at(np.arange(position, position + n)))
            start += n
        rows = np.concatenate(parts)
        return rows if self.subset is None else self.subset[rows]

    def _fetch(self, rows: Int[np.ndarray, " n"], readers: ThreadPoolExecutor) -> Int[Tensor, " n"]:
        """Copy `rows` into the block in the order of the disk; returns where in the block each of them is."""
        order = np.argsort(rows)
        ascending, borders = rows[order], np.linspace(0, len(rows), N_READERS + 1).astype(int)

        def fetch(part: slice) -> None:
            self.store.gather(ascending[part], self.hook_point, self.block[part])

        list(readers.map(fetch, [slice(borders[i], borders[i + 1]) for i in range(N_READERS)]))
        places = np.empty(len(rows), dtype=np.int64)
        places[order] = np.arange(len(rows))
        return torch.from_numpy(places)

    def _pick(self, places: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        block = torch.from_numpy(self.block).view(self.store.dtype)
        batch = torch.empty((len(places), block.shape[1]), dtype=block.dtype, pin_memory=self.pin)
        return torch.index_select(block, 0, places, out=batch)

    def _check(self, batch: Float[Tensor, "batch width"], rows: Int[np.ndarray, " batch"]) -> None:
        if is_finite(batch):
            return
        row = int(rows[int(torch.nonzero(~torch.isfinite(batch).all(1))[0, 0])])
        shard = int(np.searchsorted(self.store.first_rows, row, side="right")) - 1
        raise StoreError(
            f"{self.store.path}: {self.hook_point} holds a NaN or an infinity in shard {shard_name(shard)}, row "
            f"{row - int(self.store.first_rows[shard])} (row {row} of the store, example "
            f"{int(self.store.row_example[row])}). "
            f"The store was altered after it was written, or made by another program."
        )


def is_finite(values: Float[Tensor, "..."]) -> bool:
    """Whether no value is a NaN or an infinity: two integer maxima, many times cheaper than `isfinite` of a bf16.

    The bits of a NaN or an infinity are the largest of their sign: read as signed integers the positive ones are on
    top, read as unsigned integers the negative ones.
    """
    size = values.element_size()
    infinity = torch.tensor(float("inf"), dtype=values.dtype).view(_SIGNED[size]).item()
    signed = values.view(_SIGNED[size]).numpy()
    sign_bit = 1 << (8 * size - 1)
    return bool(signed.max() < infinity and signed.view(f"u{size}").max() < infinity + sign_bit)
