"""ActivationStore: opens a finished store and reads its rows."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from saekit.errors import HookPointError, StoreError, closest
from saekit.files import hash_file, hash_json, read_json, read_meta
from saekit.store.examples import ExampleTable
from saekit.store.format import (
    KIND,
    PLAN,
    SCHEMA,
    SHARDS,
    map_rows,
    offsets_of,
    parts_by_shard,
    rows_bytes,
    runs_by_shard,
    shard_name,
)
from saekit.store.shard import TORCH_DTYPES

if TYPE_CHECKING:
    from saekit.store.loader import ActivationLoader


META_KEYS = ("dtype", "hook_points", "n_rows", "n_examples", "shards", "extraction", "skipped", "content_hash")


class ActivationStore:
    """Activations at one or more hook points, memory-mapped, and the examples they come from.

    Rows are numbered through all shards; every hook point has the same rows. May be shared between threads.
    """

    def __init__(self, path: str | Path, meta: dict[str, Any]) -> None:
        self.path = Path(path)
        self.meta = meta
        self.hook_points: tuple[str, ...] = tuple(meta["hook_points"])
        self.n_rows: int = meta["n_rows"]
        self.n_examples: int = meta["n_examples"]
        self.content_hash: str = meta["content_hash"]
        self.dtype: torch.dtype = TORCH_DTYPES[meta["dtype"]]
        self.first_rows: Int[np.ndarray, " n_shards_plus_1"] = offsets_of([shard["n_rows"] for shard in meta["shards"]])
        """Number of the first row of each shard, and `n_rows`."""
        self._maps: dict[tuple[str, bool], list[Shaped[np.ndarray, "n_rows width"]]] = {}

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> "ActivationStore":
        """Open a store; `verify` also reads every byte and compares it with the checksums.

        Raises `StoreError` when the extraction is unfinished, and for shards that are missing, of the wrong size or
        (with `verify`) altered: it lists all of them with what was expected.
        """
        path = Path(path)
        if not (path / "meta.json").exists() and (path / PLAN).exists():
            n_done = len(list(path.glob(f"{SHARDS}/[0-9]*/manifest.json")))
            raise StoreError(
                f"{path} is an unfinished extraction ({n_done} whole shards). Run the `saekit extract` that began it "
                f"again; it goes on from there."
            )
        meta = read_meta(path, KIND, SCHEMA, StoreError, keys=META_KEYS)
        _check_shards(path, meta, verify)
        if verify:
            manifests = [read_json(path / SHARDS / shard_name(i) / "manifest.json") for i in range(len(meta["shards"]))]
            found = store_hash(manifests, ExampleTable.open(path / "examples", verify=True), meta["dtype"])
            if found != meta["content_hash"]:
                raise StoreError(
                    f"{path} has the content hash {found}; its meta.json says {meta['content_hash']}. Some of its "
                    f"files come from another store."
                )
        return cls(path, meta)

    @cached_property
    def examples(self) -> ExampleTable:
        """The examples that the rows come from."""
        return ExampleTable.open(self.path / "examples")

    @property
    def row_example(self) -> Int[np.ndarray, " n_rows"]:
        """Which example each row comes from, ascending."""
        return self.examples.row_example

    @property
    def row_position(self) -> Int[np.ndarray, " n_rows"]:
        """Position in the model's token sequence that each row comes from."""
        return self.examples.row_position

    def d_model(self, hook_point: str | None = None) -> int:
        """Width of the rows at `hook_point`; None means the only one."""
        width: int = self.meta["hook_points"][self.resolve(hook_point)]["width"]
        return width

    def resolve(self, hook_point: str | None) -> str:
        """`hook_point` if the store has it, or the only one for None. Raises `StoreError` or `HookPointError`."""
        if hook_point is None:
            if len(self.hook_points) > 1:
                names = ", ".join(self.hook_points)
                raise StoreError(f"{self.path} holds several hook points ({names}); name one with --hook-point.")
            return self.hook_points[0]
        if hook_point not in self.hook_points:
            raise HookPointError(
                f"{self.path} has no hook point {hook_point!r}. It has: {closest(hook_point, self.hook_points, n=8)}."
            )
        return hook_point

    def rows(self, start: int, stop: int, hook_point: str | None = None) -> Float[Tensor, "n width"]:
        """Rows `start` to `stop` (clipped to the store, as in a slice) in the stored type, copied into memory."""
        start, stop, _ = slice(start, stop).indices(self.n_rows)
        point = self.resolve(hook_point)
        maps = self.maps(point)
        out = np.empty((max(0, stop - start), self.d_model(point)), dtype=maps[0].dtype)
        filled = 0
        for shard, first, end in parts_by_shard(start, stop, self.first_rows):
            out[filled : filled + end - first] = maps[shard][first:end]
            filled += end - first
        return as_tensor(out, self.dtype)

    def take(self, rows: Int[np.ndarray, " n"], hook_point: str | None = None) -> Float[Tensor, "n width"]:
        """Any rows, in any order, in the stored type, copied into memory."""
        point, order = self.resolve(hook_point), np.argsort(rows, kind="stable")
        gathered = np.empty((len(rows), self.d_model(point)), dtype=self.maps(point)[0].dtype)
        self.gather(rows[order], point, gathered)
        out = np.empty_like(gathered)
        out[order] = gathered
        return as_tensor(out, self.dtype)

    def gather(self, rows: Int[np.ndarray, " n"], hook_point: str, out: Shaped[np.ndarray, "n width"]) -> None:
        """Copy ascending `rows` into `out` (storage type); releases the interpreter lock while copying."""
        maps = self.maps(hook_point)
        for shard, which, inside in runs_by_shard(rows, self.first_rows):
            # mode="clip" is what lets take() write straight into `out`; the numbers are in range.
            np.take(maps[shard], inside, axis=0, out=out[which], mode="clip")

    def maps(self, hook_point: str, scattered: bool = False) -> list[Shaped[np.ndarray, "n_rows width"]]:
        """The memory maps of a hook point's shards; bf16 as uint16.

        `scattered` maps are for rows from all over a store that memory cannot hold: reading ahead would waste the disk.
        """
        key = (hook_point, scattered)
        if key not in self._maps:
            width, file = self.d_model(hook_point), self.meta["hook_points"][hook_point]["file"]
            self._maps[key] = [
                map_rows(
                    self.path / SHARDS / shard_name(i) / file, shard["n_rows"], width, self.meta["dtype"], scattered
                )
                for i, shard in enumerate(self.meta["shards"])
            ]
        return self._maps[key]

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        hook_point: str | None = None,
        n_tokens: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        prefetch: int = 2,
        rows: Int[np.ndarray, " n"] | None = None,
    ) -> "ActivationLoader":
        """Shuffled batches of all rows (or of those numbered in `rows`), without end or `n_tokens` rows in total."""
        from saekit.store.loader import ActivationLoader

        return ActivationLoader(
            self,
            batch_size,
            seed=seed,
            hook_point=self.resolve(hook_point),
            n_tokens=n_tokens,
            device=device,
            dtype=dtype,
            prefetch=prefetch,
            rows=rows,
        )

    def moments(self, hook_point: str | None = None) -> tuple[Float[np.ndarray, " width"], float]:
        """(mean row, mean squared distance of a row from it) over the whole store, in float64.

        Raises `StoreError` when the file of the mean is missing or damaged.
        """
        described = self.meta["hook_points"][self.resolve(hook_point)]
        file = self.path / described["mean_file"]
        try:
            mean = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(
                f"{file}, the mean of the store's rows, is missing or damaged ({error}). Bring it from another copy, "
                f"or delete {self.path} and extract again."
            ) from None
        return mean, described["mean_squared_norm_about_mean"]

    def provenance(self, hook_point: str | None = None) -> dict[str, Any]:
        """What a checkpoint trained on these rows must remember: backbone, hook point, options, layout, store hash."""
        extraction = self.meta["extraction"]
        return {
            "backbone": extraction.get("backbone"),
            "hook_point": self.resolve(hook_point),
            "options": extraction.get("options"),
            "layout": extraction["layout"],
            "store_hash": self.content_hash,
        }

    def __repr__(self) -> str:
        widths = ", ".join(f"{point} [{self.n_rows} {self.d_model(point)}]" for point in self.hook_points)
        return f"ActivationStore({str(self.path)!r}: {widths}, {self.meta['dtype']}, {self.n_examples} examples)"


def as_tensor(values: Shaped[np.ndarray, "n width"], dtype: torch.dtype) -> Float[Tensor, "n width"]:
    """A tensor over the same memory; uint16 becomes bf16."""
    tensor = torch.from_numpy(values)
    return tensor.view(dtype) if tensor.dtype != dtype else tensor


def store_hash(manifests: Sequence[Mapping[str, Any]], examples: ExampleTable, dtype: str) -> str:
    """Content hash of a store: of its shards' manifests and its examples, not of how they were made."""
    return hash_json({"manifests": list(manifests), "examples": examples.content_hash, "dtype": dtype})


def _check_shards(path: Path, meta: dict[str, Any], verify: bool) -> None:
    problems: dict[str, list[str]] = {"Missing": [], "Wrong size": [], "Altered": []}
    bad = set()
    for i, shard in enumerate(meta["shards"]):
        name, folder = shard_name(i), path / SHARDS / shard_name(i)
        manifest = read_json(folder / "manifest.json") if verify and (folder / "manifest.json").exists() else None
        for point, described in meta["hook_points"].items():
            file, label = folder / described["file"], f"{name} {point}"
            expected = rows_bytes(shard["n_rows"], described["width"], meta["dtype"])
            found = file.stat().st_size if file.exists() else None
            if found is None:
                problems["Missing"].append(label)
            elif found != expected:
                problems["Wrong size"].append(f"{label} (expected {expected} bytes, found {found})")
            elif manifest and (checksum := hash_file(file)) != (wanted := manifest["files"][point]["blake2b"]):
                problems["Altered"].append(f"{label} (expected BLAKE2b {wanted}, found {checksum})")
            else:
                continue
            bad.add(i)
        if verify and manifest is None:
            problems["Missing"].append(f"{name} manifest.json")
            bad.add(i)
    if bad:
        listed = " ".join(f"{what}: {', '.join(items)}." for what, items in problems.items() if items)
        raise StoreError(
            f"{len(bad)} of {len(meta['shards'])} shards in {path} are unusable. {listed} "
            f"Bring them from another copy (content hash {meta['content_hash']}), or delete {path} and extract again."
        )
