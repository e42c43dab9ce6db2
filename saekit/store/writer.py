"""StoreWriter: makes an ActivationStore shard by shard, and goes on after a kill where the last whole shard ended."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from saekit import __version__
from saekit.errors import ConfigError, SaekitError, StoreError
from saekit.files import atomic_write, make_directory, read_json, read_meta, write_json
from saekit.store.background import BackgroundTasks
from saekit.store.columns import ExampleColumns
from saekit.store.example_writer import ExampleTableWriter
from saekit.store.examples import Example, ExampleTable, TokenLayout
from saekit.store.format import KIND, PLAN, SCHEMA, SEGMENT, SHARDS, hook_file, shard_name, storage_dtype
from saekit.store.moments import Moments, merge_moments, norm_report
from saekit.store.reader import store_hash
from saekit.store.shard import ShardWriter

N_WAITING = 8
TEMPORARY = (f".{PLAN}.", ".meta.json.", ".examples.")


class StoreWriter:
    """Writes a store; use it as a context manager. Whole shards survive whatever ends the process.

    `hook_points` maps each name to its width, `dtype` is "bf16", "fp16" or "fp32", and `plan` is JSON: everything the
    bytes depend on (backbone, options, source ...). A directory begun with another plan is refused with the fields
    that differ. `is_complete` tells that the directory already holds the finished store of this plan.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        hook_points: Mapping[str, int],
        dtype: str,
        layout: TokenLayout,
        plan: Mapping[str, Any],
    ) -> None:
        storage_dtype(dtype)
        if not hook_points:
            raise ConfigError("No hook point given; name at least one, e.g. --hook-points layers.6")
        self.path = Path(path)
        self.hook_points, self.dtype, self.layout = dict(hook_points), dtype, layout
        self._plan = {
            "hook_points": self.hook_points,
            "dtype": dtype,
            "layout": {"content": layout.content, "prefix": list(layout.prefix)},
            **plan,
        }
        self._shards = self.path / SHARDS
        self.shard: ShardWriter | None = None
        """The shard that is being written."""
        self._begun: list[ShardWriter] = []
        self.n_done = self.n_rows_done = self.n_examples_done = 0
        """Shards that are whole or waiting to be written, and what is in them."""
        self._lock = _lock(self.path)
        try:
            self._begin()
        except BaseException:
            os.close(self._lock)
            raise
        self._tasks = BackgroundTasks(N_WAITING)

    def _begin(self) -> None:
        leftovers = [name for name in os.listdir(self.path) if name.startswith(TEMPORARY) and name.endswith(".tmp")]
        self.is_complete = (self.path / "meta.json").exists()
        if self.is_complete:
            _compare(read_meta(self.path, KIND, SCHEMA, StoreError)["extraction"], self._plan, self.path)
        elif (self._shards / shard_name(0) / "manifest.json").exists():
            _compare(read_json(self.path / PLAN), self._plan, self.path)
        elif others := sorted(set(os.listdir(self.path)) - {PLAN, SHARDS, *leftovers}):
            raise StoreError(
                f"{self.path} holds other files ({', '.join(others[:3])}); give --out a new or empty directory."
            )
        else:
            write_json(self.path / PLAN, self._plan)
        self._sweep([self.path / name for name in leftovers])
        while (self._shards / shard_name(self.n_done) / "manifest.json").exists():
            manifest = self._manifest(self.n_done)
            self.n_done += 1
            self.n_rows_done += manifest["n_rows"]
            self.n_examples_done += manifest["n_examples"]

    def last_state(self) -> dict[str, Any] | None:
        """What `end_shard` was given for the last shard that is done; None when there is none."""
        if self.n_done == 0:
            return None
        state: dict[str, Any] = json.loads(_segment(self._shards / shard_name(self.n_done - 1), "state").tobytes())
        return state

    def begin_shard(self) -> ShardWriter:
        """The writer of the shard after the last."""
        assert self.shard is None, "the shard before is not ended"
        self.shard = ShardWriter(self._shards, self.n_done, self._tasks, self.hook_points, self.dtype, self.layout)
        self._begun = [*(shard for shard in self._begun if not shard.is_done), self.shard]
        return self.shard

    def end_shard(self, state: Mapping[str, Any]) -> None:
        """Finish the shard that was begun, in the background. `state` is JSON that is needed to go on after it."""
        assert self.shard is not None, "no shard is begun"
        self.shard.commit(state)
        self.n_done += 1
        self.n_rows_done += self.shard.n_rows
        self.n_examples_done += self.shard.n_examples
        self.shard = None

    def write_shard(
        self,
        examples: Sequence[Example],
        rows: Mapping[str, Float[Tensor, "n_rows _"]],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a whole shard at once: the kept tokens of `examples`, in order, are the rows of every hook point."""
        shard = self.begin_shard()
        shard.append(examples)
        shard.put(rows, np.arange(shard.n_rows))
        self.end_shard(state or {})

    def finish(
        self,
        *,
        skipped: Mapping[str, Any] | None = None,
        vocabulary: Sequence[bytes] | None = None,
        dropped: Mapping[str, Any] | None = None,
    ) -> None:
        """Join what the shards know into the store's `examples/`, `moments/` and, last, `meta.json`.

        `skipped` tells of inputs that could not be used, `dropped` of rows that were left out."""
        assert self.shard is None, "the last shard is not ended"
        self._tasks.drain()
        folders = [self._shards / shard_name(shard) for shard in range(self.n_done)]
        if not self.is_complete:
            if not (self.path / "examples" / "meta.json").exists():
                self._join_examples(folders, vocabulary)
            table = ExampleTable.open(self.path / "examples")
            manifests = [self._manifest(shard) for shard in range(self.n_done)]
            meta: dict[str, Any] = {
                "kind": KIND,
                "schema": SCHEMA,
                "saekit": __version__,
                "dtype": self.dtype,
                "hook_points": {point: self._describe(point, folders, table) for point in self.hook_points},
                "n_rows": table.n_rows,
                "n_examples": len(table),
                "n_documents": len(table.documents),
                "shards": [{key: manifest[key] for key in ("n_rows", "n_examples")} for manifest in manifests],
                "extraction": self._plan,
                "skipped": dict(skipped or {"count": 0, "reasons": {}, "first": []}),
                "dropped": None if dropped is None else dict(dropped),
            }
            content_hash = store_hash(manifests, table, self.dtype)
            write_json(self.path / "meta.json", {**meta, "content_hash": content_hash})
            self.is_complete = True
        for folder in folders:
            (folder / SEGMENT).unlink(missing_ok=True)
        (self.path / PLAN).unlink(missing_ok=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tasks.__exit__(kind, error, at)
        for shard in self._begun:
            if not shard.is_done:
                shard.discard()
        # A user's mistake that stopped the first shard leaves nothing behind, so that it can be corrected.
        if kind is not None and issubclass(kind, SaekitError) and not list(self._shards.glob("*/manifest.json")):
            shutil.rmtree(self._shards, ignore_errors=True)
            (self.path / PLAN).unlink(missing_ok=True)
            with suppress(OSError):
                self.path.rmdir()
        os.close(self._lock)

    def _sweep(self, leftovers: Sequence[Path]) -> None:
        """Remove the temporary files that a kill has left."""
        for path in [*leftovers, *self._shards.glob(".*.tmp"), *self.path.glob("moments/.*.tmp")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _manifest(self, shard: int) -> dict[str, Any]:
        manifest: dict[str, Any] = read_json(self._shards / shard_name(shard) / "manifest.json")
        return manifest

    def _join_examples(self, folders: Sequence[Path], vocabulary: Sequence[bytes] | None) -> None:
        kind = "image" if self.layout.content == "patch" else "text"
        with ExampleTableWriter(self.path / "examples", kind=kind, layout=self.layout) as writer:
            for folder in folders:
                with np.load(folder / SEGMENT, allow_pickle=False) as segment:
                    writer.extend(ExampleColumns.from_arrays(segment))
            writer.finish(vocabulary)

    def _describe(self, point: str, folders: Sequence[Path], table: ExampleTable) -> dict[str, Any]:
        parts, norms = [], []
        for shard, folder in enumerate(folders):
            n_rows = self._manifest(shard)["n_rows"]
            mean, squared = (_segment(folder, f"{name} {point}") for name in ("mean", "squared"))
            parts.append(Moments(n_rows, mean, float(squared)))
            norms.append(_segment(folder, f"norms {point}"))
        moments = merge_moments(parts)
        mean_file = f"moments/{hook_file(point, 'mean.npy')}"
        with atomic_write(self.path / mean_file) as file:
            np.save(file, moments.mean, allow_pickle=False)
        return {
            "width": self.hook_points[point],
            "file": hook_file(point),
            "mean_file": mean_file,
            "mean_squared_norm_about_mean": moments.mean_squared_norm_about_mean,
            "norms": norm_report(np.concatenate(norms), table.row_example, table.row_position),
        }


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn "no space left on device" into a `StoreError` that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        n_done = len(list(path.glob(f"{SHARDS}/[0-9]*/manifest.json")))
        raise StoreError(
            f"The disk that holds {path} is full. Its {n_done} finished shards are whole: make room and run the same "
            f"command again, and it goes on from there."
        ) from None


def _segment(folder: Path, name: str) -> Shaped[np.ndarray, "..."]:
    with np.load(folder / SEGMENT, allow_pickle=False) as segment:
        values: Shaped[np.ndarray, ...] = segment[name]
        return values


def _lock(path: Path) -> int:
    make_directory(path, StoreError)
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StoreError(f"Another process is writing {path}; wait for it or give another --out.") from None
    return handle


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    old, new = dict(_leaves("", found)), dict(_leaves("", wanted))
    differ = [
        f"{name}: {old.get(name, 'absent')!r} there, {new.get(name, 'absent')!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differ:
        raise StoreError(
            f"{path} was begun with other settings ({'; '.join(differ)}). Use those again, give another --out, or "
            f"delete the directory."
        )


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield prefix, list(value) if isinstance(value, tuple) else value
        return
    for key, item in value.items():
        yield from _leaves(f"{prefix}.{key}" if prefix else str(key), item)
