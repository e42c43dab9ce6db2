"""ActivationLoader: shuffled batches of a store's rows, read ahead in a thread, that resumes where it stopped."""

import os
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from saekit.errors import ConfigError, StoreError
from saekit.store.background import read_ahead
from saekit.store.format import rows_bytes, runs_by_shard, shard_name
from saekit.store.shuffle import Permutation

if TYPE_CHECKING:
    from saekit.store.reader import ActivationStore

BLOCK_BYTES = 2**26
"""Rows are fetched in blocks of about this size, sorted by their place on disk inside a block ..."""
BLOCK_ROWS = 65_536
"""... and at most this many rows, so that narrow rows do not make the first batch wait."""
N_CACHED_READERS = min(4, os.cpu_count() or 1)
N_DISK_READERS = 32
"""Many more than cores: a disk's throughput comes from the number of reads that wait at the same time."""
PIECE_ROWS = 256
_SIGNED = {2: torch.int16, 4: torch.int32}
_INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}


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
        self.width = self.store.d_model(self.hook_point)
        n_bytes = rows_bytes(self.store.n_rows, self.width, self.store.meta["dtype"])
        from_disk = n_bytes > _available_memory()
        self.maps = self.store.maps(self.hook_point, scattered=from_disk)
        self.n_readers = N_DISK_READERS if from_disk else N_CACHED_READERS
        n_wanted = min(BLOCK_BYTES // (self.width * self.maps[0].itemsize), BLOCK_ROWS, self.n_rows)
        self.block_rows = max(1, n_wanted // self.batch_size) * self.batch_size
        self.blocks: list[Shaped[np.ndarray, "block_rows width"]] = []

    def batches(self, start: int, stop: int | None) -> Generator[Tensor, None, None]:
        """Batches of the endless shuffled order from place `start` on, up to `stop`."""
        with ThreadPoolExecutor(self.n_readers, thread_name_prefix="saekit-reader") as readers:
            rows = self._rows(start, stop)
            while len(rows):
                block = self._block()
                tasks = self._fetch(rows, self._bits(block), readers)
                start += len(rows)
                rows = self._rows(start, stop)  # while the readers are at work
                n_fetched = sum(task.result() for task in tasks)
                for first in range(0, n_fetched, self.batch_size):
                    yield block[first : min(first + self.batch_size, n_fetched)]
                del block

    def _rows(self, start: int, stop: int | None) -> Int[np.ndarray, " n"]:
        """The row numbers of the block from place `start` of the endless shuffled order on."""
        end = start + self.block_rows if stop is None else min(start + self.block_rows, stop)
        parts = [np.zeros(0, dtype=np.int64)]
        while start < end:
            epoch, position = divmod(start, self.n_rows)
            n = min(end - start, self.n_rows - position)
            parts.append(Permutation(self.n_rows, self.seed, epoch).at(np.arange(position, position + n)))
            start += n
        rows = np.concatenate(parts)
        return rows if self.subset is None else self.subset[rows]

    def _block(self) -> Float[Tensor, "block_rows width"]:
        """Memory for a block: one that no batch refers to any more, since new memory costs as much as the copy."""
        if self.pin:  # CUDA's allocator recycles pinned memory, and knows when copies from it are done
            return torch.empty((self.block_rows, self.width), dtype=self.store.dtype, pin_memory=True)
        # Two references: the list's and getrefcount's own. Every batch holds one more.
        free = [i for i in range(len(self.blocks)) if sys.getrefcount(self.blocks[i]) <= 2]
        if not free:
            self.blocks.append(np.empty((self.block_rows, self.width), dtype=self.maps[0].dtype))
        return torch.from_numpy(self.blocks[free[0] if free else -1]).view(self.store.dtype)

    def _bits(self, block: Float[Tensor, "block_rows width"]) -> Shaped[np.ndarray, "block_rows width"]:
        return block.view(_SIGNED[block.element_size()]).numpy().view(self.maps[0].dtype)

    def _fetch(
        self, rows: Int[np.ndarray, " n"], block: Shaped[np.ndarray, "block_rows width"], readers: ThreadPoolExecutor
    ) -> "list[Future[int]]":
        """Begin to copy row `rows[i]` of the store to row i of the block, in the order of the disk."""
        order = np.argsort(rows)
        parts = [part for part in np.array_split(order, self.n_readers) if len(part)]
        return [readers.submit(self._copy, rows[part], part, block) for part in parts]

    def _copy(
        self, rows: Int[np.ndarray, " n"], places: Int[np.ndarray, " n"], block: Shaped[np.ndarray, "block_rows width"]
    ) -> int:
        """Copy ascending `rows` to `places` of the block. Few at a time, so that check and scatter are from cache."""
        piece = np.empty((PIECE_ROWS, self.width), dtype=block.dtype)
        for shard, which, inside in runs_by_shard(rows, self.store.first_rows):
            for first in range(0, len(inside), PIECE_ROWS):
                numbers = inside[first : first + PIECE_ROWS]
                found = piece[: len(numbers)]
                np.take(self.maps[shard], numbers, axis=0, out=found, mode="clip")
                if not bits_are_finite(found, self.store.dtype):
                    self._refuse(found, rows[which][first : first + PIECE_ROWS])
                block[places[which][first : first + PIECE_ROWS]] = found
        return len(rows)

    def _refuse(self, found: Shaped[np.ndarray, "n width"], rows: Int[np.ndarray, " n"]) -> None:
        finite = [bits_are_finite(row, self.store.dtype) for row in found]
        row = int(rows[finite.index(False)])
        shard = int(np.searchsorted(self.store.first_rows, row, side="right")) - 1
        raise StoreError(
            f"{self.store.path}: {self.hook_point} holds a NaN or an infinity in shard {shard_name(shard)}, row "
            f"{row - int(self.store.first_rows[shard])} (row {row} of the store, example "
            f"{int(self.store.row_example[row])}). "
            f"The store was altered after it was written, or made by another program."
        )


def _available_memory() -> float:
    """Bytes that the page cache could take, where the system tells (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return float(sizes[0]) if sizes else float("inf")


def bits_are_finite(bits: Shaped[np.ndarray, "..."], dtype: torch.dtype) -> bool:
    """Whether no value of type `dtype`, read as uint16 or as itself, is a NaN or an infinity.

    Two integer maxima, many times cheaper than `isfinite` of a bf16. The bits of a NaN or an infinity are the largest
    of their sign: read as signed integers the positive ones are on top, read as unsigned integers the negative ones.
    """
    size = bits.itemsize
    infinity, sign_bit = _INFINITY[dtype], 1 << (8 * size - 1)
    return bool(bits.view(f"i{size}").max() < infinity and bits.view(f"u{size}").max() < infinity + sign_bit)
