"""Builds an index from sparse codes in one pass over the rows, resumable and in bounded memory. NumPy only.

Rows are encoded in blocks. A finished block is a directory under `partial/blocks/` with its codes in both orders; a
block of 65,536 rows fits in memory many times over. The merge then takes a range of features at a time, collects its
codes from every block (each block's part of a feature range is contiguous), writes them and their statistics. A killed
build loses the block it was in; the merge is done over. `meta.json` comes last.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from tqdm import tqdm

import saekit
from saekit.errors import FeatureIndexError
from saekit.files import (
    free_bytes,
    hash_file,
    hash_json,
    make_directory,
    read_json,
    readable_bytes,
    sync_directory,
    write_json,
)
from saekit.index import format as layout
from saekit.index.merge import merge
from saekit.store.examples import ExampleTable

BLOCK_ROWS = 65_536
"""Rows per block; a row's number inside its block is kept in two bytes."""
_BYTES_PER_CODE = 8
_N_SAMPLED_ROWS = 512


class RowCodes(NamedTuple):
    """The codes of consecutive rows: for each row its nonzero latents, in ascending order of feature."""

    counts: Integer[np.ndarray, " n_rows"]
    features: Integer[np.ndarray, " n_codes"]
    values: Float[np.ndarray, " n_codes"]


Encode = Callable[[int, int], Iterator[RowCodes]]
"""`encode(start, stop)` yields the codes of rows start to stop in batches of any size; always the same for the same."""


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """What is to be built."""

    d_sae: int
    examples: Path
    """Directory of the store's ExampleTable."""
    meta: dict[str, Any]
    """What else `meta.json` says: where the rows and the latents come from. JSON."""
    block_rows: int = BLOCK_ROWS

    @property
    def key(self) -> str:
        """What an unfinished build must agree on to be continued."""
        return hash_json({"d_sae": self.d_sae, "block_rows": self.block_rows, "meta": self.meta})


def write_index(
    out: str | Path,
    plan: IndexPlan,
    encode: Encode,
    dictionary: Callable[[], dict[str, np.ndarray]],
    progress: bool = True,
) -> None:
    """Build the index `out`, or go on with it; nothing is done when it is there already.

    `dictionary` gives the arrays that depend on the weights only (`saekit.index.dictionary`). Raises
    `FeatureIndexError` when `out` holds something else, another build is at work in it, or the disk is too small.
    """
    out = Path(out)
    if _is_finished(out, plan):
        return
    with _explain_full_disk(out), _claim(out, plan):
        examples = ExampleTable.open(plan.examples)
        if examples.n_rows > layout.MAX_ROWS:
            raise FeatureIndexError(f"{examples.n_rows} rows; an index holds at most {layout.MAX_ROWS}.")
        _check_disk(out, plan, examples, encode)
        _encode_blocks(out, plan, examples.n_rows, encode, progress)
        _copy_examples(plan.examples, out / layout.EXAMPLES)
        facts = merge(out, plan.d_sae, plan.block_rows, examples, progress)
        for name, array in dictionary().items():
            layout.save_array(out, name, array)
        _finish(out, plan, facts)


def _is_finished(out: Path, plan: IndexPlan) -> bool:
    if not (out / "meta.json").exists():
        return False
    meta = read_json(out / "meta.json", FeatureIndexError)
    if meta.get("build_key") != plan.key:
        raise FeatureIndexError(
            f"{out} already holds a {meta.get('kind')} made from something else. Choose another `out`, or delete it."
        )
    shutil.rmtree(out / layout.PARTIAL, ignore_errors=True)
    return True


@contextmanager
def _explain_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FeatureIndexError(
            f"The disk of {out} is full. What is finished is kept: free some space and run the same command again."
        ) from error


@contextmanager
def _claim(out: Path, plan: IndexPlan) -> Iterator[None]:
    """Make `out` ours: refuse a folder with other things in it and a second build in the same one."""
    partial = out / layout.PARTIAL
    if out.exists() and not out.is_dir():
        raise FeatureIndexError(f"{out} is a file; an index is a directory.")
    if out.is_dir() and not partial.is_dir() and any(out.iterdir()):
        raise FeatureIndexError(f"{out} exists, is not empty and is not an index. Choose another `out`.")
    make_directory(partial, FeatureIndexError)
    with open(partial / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FeatureIndexError(f"Another process is building {out} right now. Wait for it or stop it.") from None
        plan_path = partial / "plan.json"
        if not plan_path.exists():
            write_json(plan_path, {"key": plan.key, "meta": plan.meta})
        elif read_json(plan_path, FeatureIndexError).get("key") != plan.key:
            raise FeatureIndexError(
                f"{out} holds an unfinished index of another checkpoint, store or option. "
                "Choose another `out`, or delete it."
            )
        try:
            yield
        except BaseException:
            _leave_nothing_empty(out)
            raise


def _leave_nothing_empty(out: Path) -> None:
    """Remove what was made in `out` unless it holds a block, which the next attempt starts from."""
    partial = out / layout.PARTIAL
    if any((partial / "blocks").glob("[0-9]*")) or not partial.is_dir():
        return
    shutil.rmtree(partial, ignore_errors=True)
    if not any(out.iterdir()):
        out.rmdir()


def _check_disk(out: Path, plan: IndexPlan, examples: ExampleTable, encode: Encode) -> None:
    """Encode a few hundred rows to learn how many codes there will be, and refuse if they cannot fit."""
    n_rows = examples.n_rows
    per_place = min(_N_SAMPLED_ROWS // 4, n_rows)
    places = np.linspace(0, n_rows - per_place, 4).astype(np.int64).tolist() if n_rows else []
    n_codes = sum(len(codes.values) for at in places for codes in encode(at, at + per_place))
    per_row = n_codes / max(4 * per_place, 1)
    index_bytes = 2 + 2 + 4 + layout.feature_dtype(plan.d_sae).itemsize
    needed = int(n_rows * per_row * (index_bytes + _BYTES_PER_CODE) * 1.1)
    needed += n_rows * 16 + _folder_bytes(plan.examples) + plan.d_sae * 1024
    present = _folder_bytes(out)
    free = free_bytes(out)
    if needed - present > free:
        raise FeatureIndexError(
            f"An index of {n_rows:,} rows with about {per_row:.0f} active latents each needs "
            f"{readable_bytes(needed)} at its peak; {out.absolute().parent} has {readable_bytes(free)} free. "
            "Free some, or choose another disk."
        )


def _encode_blocks(out: Path, plan: IndexPlan, n_rows: int, encode: Encode, progress: bool) -> None:
    """Encode what is not on disk yet. Sorting and writing a block overlap with encoding the next."""
    blocks = out / layout.PARTIAL / "blocks"
    blocks.mkdir(exist_ok=True)
    starts = range(0, n_rows, plan.block_rows)
    bar = tqdm(total=n_rows, unit="row", unit_scale=True, desc="encode", disable=not progress)
    with bar, ThreadPoolExecutor(max_workers=1) as writer:
        pending: Future[None] | None = None
        for number, start in enumerate(starts):
            stop = min(start + plan.block_rows, n_rows)
            target = blocks / f"{number:05d}"
            if target.exists():
                bar.update(stop - start)
                continue
            parts = []
            for part in encode(start, stop):
                parts.append(part)
                bar.update(len(part.counts))
            if pending is not None:
                pending.result()
            pending = writer.submit(_write_block, target, plan.d_sae, start, parts)
            del parts
        if pending is not None:
            pending.result()


def _write_block(target: Path, d_sae: int, start: int, parts: list[RowCodes]) -> None:
    counts = np.concatenate([part.counts for part in parts]).astype(np.uint32)
    features = np.concatenate([part.features for part in parts]).astype(layout.feature_dtype(d_sae))
    values = np.concatenate([part.values for part in parts]).astype(np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        row = start + int(np.repeat(np.arange(len(counts)), counts)[bad][0])
        raise FeatureIndexError(
            f"Row {row} has a latent of value {values[bad][0]}. The store or the checkpoint is damaged; "
            "check the store with ActivationStore.open(path, verify=True)."
        )
    exponent = layout.value_exponent(float(np.abs(values).max(initial=0.0)))
    packed = layout.pack_values(values, exponent)
    # feature | row in the block | value bits: one vectorised integer sort brings all three in order of feature.
    key = features.astype(np.uint64) << np.uint64(32)
    key |= np.repeat(np.arange(len(counts), dtype=np.uint64) << np.uint64(16), counts)
    key |= packed.view(np.uint16)
    key.sort()
    arrays: dict[str, np.ndarray] = {
        "exponent": np.array([exponent], dtype=np.int64),
        "row_counts": counts,
        "features": features,
        "values": packed,
        "feature_counts": np.bincount(features, minlength=d_sae).astype(np.uint32),
        "feature_rows": (key >> np.uint64(16)).astype(np.uint16),
        "feature_values": key.astype(np.uint16).view(layout.VALUE_DTYPE),
    }
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, array in arrays.items():
        layout.save_array(temporary, name, array)
    _sync_files(temporary)
    temporary.rename(target)
    sync_directory(target.parent)


def _copy_examples(source: Path, target: Path) -> None:
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    _sync_files(temporary)
    temporary.rename(target)


def _finish(out: Path, plan: IndexPlan, facts: dict[str, Any]) -> None:
    paths = sorted(path for path in out.rglob("*.npy") if layout.PARTIAL not in path.relative_to(out).parts)
    for folder in sorted({path.parent for path in paths}):
        _sync_files(folder)
        sync_directory(folder)
    with ThreadPoolExecutor(max_workers=4) as pool:
        hashes = list(pool.map(hash_file, paths))
    files = {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "hash": found}
        for path, found in zip(paths, hashes, strict=True)
    }
    examples_hash = ExampleTable.open(out / layout.EXAMPLES).content_hash
    meta = {
        "kind": layout.KIND,
        "schema": layout.SCHEMA,
        "saekit": saekit.__version__,
        "d_sae": plan.d_sae,
        **facts,
        "quantile_levels": list(layout.QUANTILE_LEVELS),
        **plan.meta,
        "arrays": [name.removesuffix(".npy") for name in files],
        "files": files,
        "examples_hash": examples_hash,
        "content_hash": hash_json({"files": files, "examples": examples_hash}),
        "build_key": plan.key,
    }
    write_json(out / "meta.json", meta)
    shutil.rmtree(out / layout.PARTIAL)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
