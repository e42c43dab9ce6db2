"""Names, types and sizes of the files of a store: the only place that computes an offset. NumPy only.

`docs/formats.md` is normative; a test reads a store by that page alone.
"""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int, Shaped

from saekit.errors import ConfigError, closest

KIND = "ActivationStore"
SCHEMA = 1
EXAMPLES_KIND = "ExampleTable"
EXAMPLES_SCHEMA = 1

SHARDS = "shards"
SEGMENT = "segment.npz"
"""File of a shard with what only an unfinished extraction needs; gone once `meta.json` is there."""
PLAN = "extraction.json"
"""What an unfinished extraction was asked for; gone once `meta.json` is there."""

DTYPES: dict[str, np.dtype[Any]] = {"bf16": np.dtype("<u2"), "fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
"""Storage types and how NumPy reads them: a bf16 is the upper half of a float32, read as its 16 bits."""

COLUMN_DTYPES: dict[str, np.dtype[Any]] = {
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
    "f64": np.dtype("<f8"),
    "u8": np.dtype("u1"),
}
"""Type of a column of the example table by the ending of its file."""


def storage_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of a storage type; `ConfigError` for an unknown one."""
    if name not in DTYPES:
        raise ConfigError(f"storage dtype {name!r} is none of {', '.join(DTYPES)}. Closest: {closest(name, DTYPES)}")
    return DTYPES[name]


def hook_file(hook_point: str, ending: str = "bin") -> str:
    """File name of a hook point: percent-encoded, so that it is legal everywhere and can be read back."""
    return f"{quote(hook_point, safe='')}.{ending}"


def shard_name(shard: int) -> str:
    """Folder of shard number `shard`, counted from 0."""
    return f"{shard:05d}"


def rows_bytes(n_rows: int, width: int, dtype: str) -> int:
    """Bytes of `n_rows` rows; also the offset of row number `n_rows` in its file."""
    return n_rows * width * storage_dtype(dtype).itemsize


def map_rows(path: Path, n_rows: int, width: int, dtype: str, scattered: bool) -> Shaped[np.ndarray, "n_rows width"]:
    """The rows of one shard and hook point, memory-mapped; `scattered` tells the system not to read ahead."""
    if n_rows == 0:
        return np.zeros((0, width), dtype=storage_dtype(dtype))
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if scattered and hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(memory, dtype=storage_dtype(dtype)).reshape(n_rows, width)


def map_column(path: Path, shape: Sequence[int]) -> Shaped[np.ndarray, "..."]:
    """A column of the example table, memory-mapped; the type is the ending of the file's name."""
    dtype = COLUMN_DTYPES[path.suffix[1:]]
    if 0 in shape:
        return np.zeros(tuple(shape), dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=tuple(shape))


def column_bytes(name: str, shape: Sequence[int]) -> int:
    """Bytes of a column of this name and shape."""
    return int(np.prod(shape, dtype=np.int64)) * COLUMN_DTYPES[Path(name).suffix[1:]].itemsize


def offsets_of(counts: Sequence[int] | Int[np.ndarray, " n"]) -> Int[np.ndarray, " n_plus_1"]:
    """int64 offsets [n+1] of `counts` consecutive runs."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def runs_by_shard(
    rows: Int[np.ndarray, " n"], first_rows: Int[np.ndarray, " n_shards_plus_1"]
) -> Iterator[tuple[int, slice, Int[np.ndarray, " m"]]]:
    """For ascending global `rows`: (shard, which of `rows`, their numbers inside the shard) for each shard touched."""
    borders = np.searchsorted(rows, first_rows)
    for shard in np.flatnonzero(np.diff(borders)):
        which = slice(int(borders[shard]), int(borders[shard + 1]))
        yield int(shard), which, rows[which] - first_rows[shard]


def parts_by_shard(
    start: int, stop: int, first_rows: Int[np.ndarray, " n_shards_plus_1"]
) -> Iterator[tuple[int, int, int]]:
    """For global rows `start` to `stop`: (shard, first, last + 1 inside the shard) for each shard touched."""
    shard = int(np.searchsorted(first_rows, start, side="right")) - 1
    while start < stop:
        end = min(stop, int(first_rows[shard + 1]))
        if end > start:
            yield shard, start - int(first_rows[shard]), end - int(first_rows[shard])
        start, shard = end, shard + 1


def geometry_columns() -> tuple[str, ...]:
    """Meaning of the 8 columns of `geometry.f64`."""
    return ("width", "height", "crop_left", "crop_top", "crop_right", "crop_bottom", "grid_rows", "grid_columns")


def file_record(shape: Sequence[int], checksum: str) -> dict[str, Any]:
    """What `meta.json` of an example table says of a file."""
    return {"shape": [int(n) for n in shape], "blake2b": checksum}
