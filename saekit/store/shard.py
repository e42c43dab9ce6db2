"""ShardWriter: one shard on its way to the disk, under a temporary name until it is whole."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from saekit.errors import InputError, StoreError
from saekit.files import atomic_write, hash_file, sync_directory, write_json
from saekit.store.background import BackgroundTasks
from saekit.store.columns import columns_of
from saekit.store.examples import Example, TokenLayout
from saekit.store.format import SEGMENT, hook_file, offsets_of, rows_bytes, shard_name
from saekit.store.moments import Moments, RowStatistics, merge_moments, row_statistics

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True, eq=False)
class _Staged:
    """A batch of one hook point on its way from the device to the host."""

    hook_point: str
    destinations: Int[np.ndarray, " n"]
    native: Float[Tensor, "n width"]
    host: Float[Tensor, "n width"]
    statistics: RowStatistics


class ShardWriter:
    """Takes the examples of a shard in order and their rows in any order; `commit` gives the shard its name."""

    def __init__(
        self,
        shards: Path,
        number: int,
        tasks: BackgroundTasks,
        widths: Mapping[str, int],
        dtype: str,
        layout: TokenLayout,
    ) -> None:
        self.number, self.n_rows, self.n_examples = number, 0, 0
        self.is_done = False
        """Whether the shard has its name."""
        self._path = shards / shard_name(number)
        self._temporary = shards / f".{shard_name(number)}.tmp"
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        self._tasks, self._widths, self._dtype = tasks, dict(widths), dtype
        self._kind = "image" if layout.content == "patch" else "text"
        self._files = {point: open(self._temporary / hook_file(point), "wb", buffering=0) for point in widths}  # noqa: SIM115
        self._n_written = dict.fromkeys(widths, 0)
        self._moments: dict[str, list[Moments]] = {point: [] for point in widths}
        self._norms: dict[str, list[tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]]] = {p: [] for p in widths}
        self._staged: list[_Staged] = []
        self._examples: list[Example] = []

    def append(self, examples: Sequence[Example]) -> Int[np.ndarray, " n_plus_1"]:
        """Add examples; returns where in the shard the rows of each begin, and where those of the last end."""
        starts = [self.n_rows]
        for example in examples:
            self._examples.append(dataclasses.replace(example, pixels=None))
            self.n_rows += len(example.kept)
            starts.append(self.n_rows)
        self.n_examples += len(examples)
        return np.array(starts, dtype=np.int64)

    def put(self, rows: Mapping[str, Float[Tensor, "n _"]], destinations: Int[np.ndarray, " n"]) -> None:
        """Store row i of every hook point as row `destinations[i]` of this shard.

        The rows of the call before are what is checked and written now: so the device is already at work on the next
        batch while the host waits for the last one. Raises `InputError` for NaN and for values that overflow.
        """
        for point, width in self._widths.items():
            if rows[point].shape != (len(destinations), width):
                raise StoreError(
                    f"{point}: the backbone gave rows of shape {tuple(rows[point].shape)}; "
                    f"{len(destinations)} rows of width {width} were expected."
                )
        if len(destinations) == 0:
            return
        staged = [self._stage(point, rows[point], destinations) for point in self._widths]
        self._flush()
        self._staged = staged

    def commit(self, state: Mapping[str, Any]) -> None:
        """Finish the shard in the background. `state`: JSON that the extraction needs to go on after it."""
        self._flush()
        self._tasks.submit(lambda: self._finish(dict(state)))

    def discard(self) -> None:
        """Forget everything of this shard, on disk too."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _stage(self, point: str, native: Float[Tensor, "n width"], destinations: Int[np.ndarray, " n"]) -> _Staged:
        stored = native.to(TORCH_DTYPES[self._dtype]).contiguous()
        statistics = row_statistics(stored)
        host = stored
        if stored.is_cuda:
            host = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)
            host.copy_(stored, non_blocking=True)
        return _Staged(point, destinations, native, host, statistics)

    def _flush(self) -> None:
        staged, self._staged = self._staged, []
        for item in staged:
            norms = item.statistics.norms.cpu().numpy()
            if not np.isfinite(norms).all():
                self._refuse(item, int(np.flatnonzero(~np.isfinite(norms))[0]))
            self._norms[item.hook_point].append((item.destinations, norms.astype(np.float32)))
            self._moments[item.hook_point].append(item.statistics.moments())
            self._n_written[item.hook_point] += len(norms)
            bits = item.host.view(torch.int16) if item.host.dtype == torch.bfloat16 else item.host
            self._tasks.submit(lambda item=item, bits=bits: self._write(item, bits.numpy()))  # type: ignore[misc]

    def _write(self, item: _Staged, rows: Shaped[np.ndarray, "n width"]) -> None:
        borders = np.flatnonzero(np.diff(item.destinations) != 1) + 1
        for start, stop in zip([0, *borders], [*borders, len(rows)], strict=True):
            data = memoryview(rows[start:stop]).cast("B")  # type: ignore[arg-type]
            offset = rows_bytes(int(item.destinations[start]), rows.shape[1], self._dtype)
            while data:
                n_written = os.pwrite(self._files[item.hook_point].fileno(), data, offset)
                data, offset = data[n_written:], offset + n_written

    def _finish(self, state: dict[str, Any]) -> None:
        files: dict[str, Any] = {}
        segment: dict[str, Any] = columns_of(self._examples, self._kind).to_arrays()
        for point, width in self._widths.items():
            n_bytes = rows_bytes(self.n_rows, width, self._dtype)
            found = os.fstat(self._files[point].fileno()).st_size
            if self._n_written[point] != self.n_rows or found != n_bytes:
                raise StoreError(
                    f"{point}: the backbone gave {self._n_written[point]} of the {self.n_rows} rows of shard "
                    f"{self.number}."
                )
            os.fsync(self._files[point].fileno())
            self._files[point].close()
            file = self._temporary / hook_file(point)
            files[point] = {"file": file.name, "bytes": n_bytes, "blake2b": hash_file(file)}
            moments = merge_moments([Moments(0, np.zeros(width), 0.0), *self._moments[point]])
            norms = np.empty(self.n_rows, dtype="<f4")
            for destinations, part in self._norms[point]:
                norms[destinations] = part
            values = {"mean": moments.mean, "squared": np.float64(moments.squared), "norms": norms}
            segment.update({f"{name} {point}": value for name, value in values.items()})
        segment["state"] = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
        with atomic_write(self._temporary / SEGMENT) as segment_file:
            np.savez(segment_file, allow_pickle=False, **segment)
        manifest = {"shard": self.number, "n_rows": self.n_rows, "n_examples": self.n_examples, "files": files}
        write_json(self._temporary / "manifest.json", manifest)
        self._temporary.rename(self._path)
        sync_directory(self._path.parent)
        self.is_done = True

    def _refuse(self, item: _Staged, row: int) -> None:
        destination = int(item.destinations[row])
        starts = offsets_of([len(example.kept) for example in self._examples])
        i = int(np.searchsorted(starts, destination, side="right")) - 1
        example = self._examples[i]
        where = f"example {example.document!r}, position {int(example.kept[destination - starts[i]])}"
        native = item.native[row]
        if bool(torch.isfinite(native).all()):
            largest = float(native.abs().max())
            limit = torch.finfo(TORCH_DTYPES[self._dtype]).max
            raise InputError(
                f"{item.hook_point} has the value {largest:.6g} ({where}); {self._dtype} ends at {limit:.6g}. "
                f"Store it with --storage-dtype bf16."
            )
        bad = int(torch.nonzero(~torch.isfinite(native))[0, 0])
        raise InputError(
            f"{item.hook_point} is {float(native[bad])} in dimension {bad} ({where}). The model overflows there: "
            f"run it with --dtype float32 or bfloat16, or leave the example out."
        )
