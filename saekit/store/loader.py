"""ActivationLoader: shuffled batches of a store's rows, read ahead in a thread, that resumes where it stopped."""

import queue
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.errors import ConfigError, StoreError
from saekit.store.format import shard_name
from saekit.store.shuffle import Permutation

if TYPE_CHECKING:
    from saekit.store.reader import ActivationStore

BLOCK_BYTES = 2**26
"""Rows are fetched in blocks of about this size, sorted by their place on disk inside a block."""
N_READERS = 2


class ActivationLoader(Iterator[Tensor]):
    """Batches `[batch_size width]` of rows in an order shuffled over the whole store, a new one in every epoch.

    Every row comes once per epoch; batches run across the end of an epoch, so all are full, except the last one when
    `n_tokens` (rows in total) is given. The order depends on `seed` and the rows alone, not on `batch_size`, threads
    or speed. `rows` restricts it to some row numbers (an int64 array, any order).

    Batches are in the stored type unless `dtype` is given; with a CUDA `device` they are copied from pinned memory
    without waiting. Raises `StoreError` for a NaN or an infinity, naming the shard and row. Close it, or use it as a
    context manager, to end its thread.
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
        self.width = store.d_model(self.hook_point)
        self._subset = rows
        self.n_rows = store.n_rows if rows is None else len(rows)
        """Rows of an epoch."""
        self.n_seen = 0
        """Rows handed out so far, over all epochs: the cursor."""
        self._stop = threading.Event()
        self._queue: queue.Queue[Tensor | BaseException] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._finalizer = weakref.finalize(self, self._stop.set)

    @property
    def epoch(self) -> int:
        """The epoch of the next row, from 0."""
        return self.n_seen // self.n_rows

    def __next__(self) -> Float[Tensor, "batch width"]:
        if self.n_tokens is not None and self.n_seen >= self.n_tokens:
            self.close()
            raise StopIteration
        if self._thread is None:
            self._start()
        batch = self._queue.get()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self.n_seen += len(batch)
        return batch.to(self.device, self.dtype, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the last batch that was handed out (what was only read ahead does not count)."""
        return {**self._identity(), "n_seen": self.n_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises `StoreError` when it is of another store, hook point, seed or rows."""
        wrong = [
            f"{key}: {state.get(key)!r} there, {own!r} here"
            for key, own in self._identity().items()
            if state.get(key) != own
        ]
        if wrong:
            raise StoreError(
                f"The loader's state does not belong to {self.store.path} as it is read now ({'; '.join(wrong)})."
            )
        self.close()
        self.n_seen = int(state["n_seen"])

    def close(self) -> None:
        """End the thread; the next batch starts another."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

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

    def _start(self) -> None:
        # The thread holds no reference to the loader: one that is dropped without close() still ends its thread.
        self._stop = threading.Event()
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, self._stop.set)
        self._queue = queue.Queue(maxsize=self.prefetch)
        plan = _Plan(self)
        self._thread = threading.Thread(
            target=plan.run, args=(self._queue, self._stop), name="saekit-loader", daemon=True
        )
        self._thread.start()


class _Plan:
    """What the thread needs to know, and its work."""

    def __init__(self, loader: ActivationLoader) -> None:
        self.store, self.hook_point, self.width = loader.store, loader.hook_point, loader.width
        self.batch_size, self.seed, self.n_rows = loader.batch_size, loader.seed, loader.n_rows
        self.subset, self.start, self.stop_at = loader._subset, loader.n_seen, loader.n_tokens
        self.pin = loader.device.type == "cuda"
        self.type = loader.store.maps(loader.hook_point)[0].dtype
        row_bytes = self.width * self.type.itemsize
        self.n_block_batches = max(1, BLOCK_BYTES // (row_bytes * self.batch_size))

    def run(self, out: "queue.Queue[Tensor | BaseException]", stop: threading.Event) -> None:
        try:
            with ThreadPoolExecutor(N_READERS, thread_name_prefix="saekit-reader") as readers:
                for batch in self._batches(readers):
                    if not _put(out, batch, stop):
                        return
        except BaseException as error:
            _put(out, error, stop)

    def _batches(self, readers: ThreadPoolExecutor) -> Iterator[Tensor]:
        scratch = np.empty((self.n_block_batches * self.batch_size, self.width), dtype=self.type)
        seen = self.start
        while self.stop_at is None or seen < self.stop_at:
            end = seen + len(scratch) if self.stop_at is None else min(seen + len(scratch), self.stop_at)
            rows = self._rows(seen, end)
            order = np.argsort(rows)
            borders = np.linspace(0, len(rows), N_READERS + 1).astype(int)
            parts = [slice(borders[i], borders[i + 1]) for i in range(N_READERS)]
            ordered = rows[order]
            list(readers.map(lambda p: self.store.gather(ordered[p], self.hook_point, scratch[p]), parts))  # noqa: B023
            place = np.empty(len(rows), dtype=np.int64)
            place[order] = np.arange(len(rows))
            block, places = self._tensor(scratch), torch.from_numpy(place)
            for first in range(0, len(rows), self.batch_size):
                last = min(first + self.batch_size, len(rows))
                batch = torch.empty((last - first, self.width), dtype=block.dtype, pin_memory=self.pin)
                torch.index_select(block, 0, places[first:last], out=batch)
                self._check(batch, rows[first:last])
                yield batch
            seen = end

    def _rows(self, seen: int, end: int) -> Int[np.ndarray, " n"]:
        """The row numbers at places `seen` to `end` of the endless shuffled order."""
        parts = []
        while seen < end:
            epoch, position = divmod(seen, self.n_rows)
            n = min(end - seen, self.n_rows - position)
            parts.append(Permutation(self.n_rows, self.seed, epoch).at(np.arange(position, position + n)))
            seen += n
        rows = np.concatenate(parts)
        return rows if self.subset is None else self.subset[rows]

    def _tensor(self, values: Any) -> Tensor:
        from saekit.store.reader import as_tensor

        return as_tensor(values, self.store.dtype)

    def _check(self, batch: Float[Tensor, "batch width"], rows: Int[np.ndarray, " batch"]) -> None:
        # One sum is cheap and a NaN or an infinity always shows in it; finite rows can only look bad by overflow.
        if torch.isfinite(batch.sum(dtype=torch.float32)):
            return
        bad = torch.nonzero(~torch.isfinite(batch).all(1))
        if len(bad) == 0:
            return
        row = int(rows[int(bad[0, 0])])
        shard = int(np.searchsorted(self.store.first_rows, row, side="right")) - 1
        raise StoreError(
            f"{self.store.path}: {self.hook_point} holds a NaN or an infinity in shard {shard_name(shard)}, row "
            f"{row - int(self.store.first_rows[shard])} (row {row} of the store, example "
            f"{int(self.store.row_example[row])}). The store was altered after it was written, or made by another program."
        )


def _put(out: "queue.Queue[Tensor | BaseException]", item: Tensor | BaseException, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            out.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
