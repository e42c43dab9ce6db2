"""The files of a FeatureIndex and how an activation becomes two bytes. `docs/formats.md` is normative.

A *code* is one nonzero latent of one row: the triple (row, feature, value). `n_codes` counts them.
"""

import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, Shaped

from saekit.errors import FeatureIndexError

KIND = "FeatureIndex"
SCHEMA = 1
PARTIAL = "partial"
"""Folder inside an unfinished index; gone once `meta.json` is there."""

VALUE_DTYPE = np.dtype("<f2")
ROW_DTYPE = np.dtype("<u4")
MAX_ROWS = 2**32 - 1
EXAMPLES = "examples"
"""Folder of an index that holds the store's ExampleTable."""

QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
"""Levels of `quantiles.npy`: 0 is the smallest active value, 1 the largest."""

_TOP_EXPONENT = 15
_SMALLEST = np.float16(2.0**-24)


def feature_dtype(d_sae: int) -> np.dtype:
    """Type of a feature id: two bytes up to 65,536 features, four above."""
    return np.dtype("<u2") if d_sae <= 2**16 else np.dtype("<u4")


def value_exponent(largest: float) -> int:
    """log2 of what values are divided by to be kept as fp16: `largest` (absolute) then lands in [2^14, 2^15]."""
    if not math.isfinite(largest):
        raise FeatureIndexError(f"A latent has the value {largest}; the checkpoint or the store is damaged.")
    exponent = math.frexp(largest)[1] - _TOP_EXPONENT if largest else 0
    return max(-126, min(126, exponent))


def pack_values(values: Float[np.ndarray, " n_codes"], exponent: int) -> Float[np.ndarray, " n_codes"]:
    """fp16 of `values` / 2^exponent.

    The relative error is at most 2^-11 (0.05 %) for every value above 2^-28 of the largest one; below that the
    absolute error is at most 2^-38 of the largest. Nothing is clipped and no nonzero value becomes zero.
    """
    packed = (values.astype(np.float32, copy=False) * np.float32(2.0**-exponent)).astype(VALUE_DTYPE)
    vanished = (packed == 0) & (values != 0)
    if vanished.any():
        packed[vanished] = np.copysign(_SMALLEST, values[vanished])
    return packed


def unpack_values(packed: Float[np.ndarray, " n_codes"], exponent: int) -> Float[np.ndarray, " n_codes"]:
    """float32 values of what `pack_values` made; exact in float32."""
    return packed.astype(np.float32) * np.float32(2.0**exponent)


def order_key(packed: Float[np.ndarray, " n_codes"]) -> Integer[np.ndarray, " n_codes"]:
    """uint16 keys that sort like the fp16 values, so that integer sorts (several times faster) can be used."""
    bits = packed.view(np.uint16)
    return np.where(bits >> 15, ~bits, bits | np.uint16(0x8000))


def from_order_key(key: Integer[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The fp16 values of `order_key`."""
    return np.where(key >> 15, key & np.uint16(0x7FFF), ~key).astype(np.uint16).view(VALUE_DTYPE)


def offsets_of(counts: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n_plus_1"]:
    """int64 offsets [n+1] of `counts` consecutive runs."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ranges(starts: Integer[np.ndarray, " n"], counts: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " total"]:
    """The concatenation of `arange(start, start + count)` over all pairs."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)


def array_path(directory: str | Path, name: str) -> Path:
    """The file of the array `name` (`"by_feature/rows"`)."""
    return Path(directory) / f"{name}.npy"


def save_array(directory: str | Path, name: str, array: Shaped[np.ndarray, "..."]) -> None:
    """Write one array as `.npy`. Not atomic: an index counts as written only when its `meta.json` exists."""
    path = array_path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def create_array(directory: str | Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """An array on disk to be filled through memory mapping. Raises `OSError` when the disk has no room for it."""
    path = array_path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # Without blocks of its own a mapped page kills the process (SIGBUS) when the disk fills up.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def map_array(directory: str | Path, name: str) -> Shaped[np.ndarray, "..."]:
    """One array, memory-mapped read-only. Raises `FeatureIndexError` when it is missing or is not whole."""
    path = array_path(directory, name)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError:
        raise FeatureIndexError(f"{path} is missing; build the index again.") from None
    except (ValueError, OSError, EOFError) as cause:
        raise FeatureIndexError(f"{path} is damaged ({cause}); build the index again.") from None
