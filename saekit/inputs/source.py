"""What a source is (a file, a folder, a Hugging Face dataset), what is in it, and about how much."""

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import InputError, closest, require

TEXT_SUFFIXES = (".txt", ".md", ".text", ".jsonl", ".ndjson", ".parquet")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """How much a source holds, as far as that is known without reading it."""

    n_inputs: int | None = None
    """Number of documents or images."""
    n_bytes: int | None = None
    """Bytes of its text on disk, markup included, so at least the bytes of its documents."""


def measure_source(source: str | Path, *, glob: str | None = None, images: bool = False) -> SourceSize:
    """The size of a source without opening its documents; streamed datasets have none."""
    if is_hub_name(source):
        return SourceSize()
    path = existing(source)
    if is_dataset_folder(path):
        data = load_dataset_folder(path)
        return SourceSize(n_inputs=sum(len(split) for _, split in data))
    files = list_files(path, IMAGE_SUFFIXES if images else TEXT_SUFFIXES, glob)
    if images:
        return SourceSize(n_inputs=len(files))
    if all(file.suffix == ".parquet" for file in files):
        return SourceSize(n_inputs=sum(open_parquet(file).metadata.num_rows for file in files))
    whole = all(file.suffix not in (".jsonl", ".ndjson", ".parquet") for file in files)
    return SourceSize(n_inputs=len(files) if whole else None, n_bytes=sum(file.stat().st_size for file in files))


def open_parquet(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`, or `InputError` when the file is none."""
    parquet = require("pyarrow.parquet", "lm")
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not a Parquet file: {error}") from None


def is_hub_name(source: str | Path) -> bool:
    """Whether `source` names a dataset of the Hugging Face hub, `hf:owner/name` or `hf:owner/name:split`."""
    return str(source).startswith("hf:")


def existing(source: str | Path) -> Path:
    """`source` as a path, or `InputError` with what stands beside it."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    beside = os.listdir(path.parent) if path.parent.is_dir() else []
    hint = f" Closest there: {closest(path.name, beside)}." if beside else f" {path.parent} does not exist either."
    raise InputError(f"{path} does not exist.{hint} A dataset of the Hugging Face hub is written hf:owner/name.")


def list_files(path: Path, suffixes: tuple[str, ...], glob: str | None) -> list[Path]:
    """The files of `path` (itself, or those below it), in an order that does not depend on the file system.

    Hidden files and folders are left out. `glob` is matched against the path below `path` and replaces `suffixes`.
    """
    if path.is_file():
        return [path]
    found = []
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            relative = file.relative_to(path).as_posix()
            wanted = fnmatch.fnmatch(relative, glob) if glob else file.suffix.lower() in suffixes
            if wanted and not name.startswith("."):
                found.append((relative, file))
    if not found:
        what = f"no file that matches {glob!r}" if glob else f"no file ending in {', '.join(suffixes)}"
        raise InputError(f"{path} holds {what}.")
    return [file for _, file in sorted(found)]


def is_dataset_folder(path: Path) -> bool:
    """Whether `path` was written by `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists())


def load_dataset_folder(path: Path) -> list[tuple[str, Any]]:
    """(prefix of ids, dataset) for each split of a saved dataset, in order of name; one dataset has the prefix ""."""
    datasets = require("datasets", "lm")
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} looks like a saved dataset and cannot be opened: {error}") from None
    if isinstance(loaded, datasets.DatasetDict):
        return [(f"{name}/", loaded[name]) for name in sorted(loaded)]
    return [("", loaded)]


def stream_hub_dataset(source: str | Path) -> Any:
    """A streamed dataset of the hub from `hf:owner/name` or `hf:owner/name:split` (split "train" unless given)."""
    datasets = require("datasets", "lm")
    name, _, split = str(source)[len("hf:") :].partition(":")
    if not name.strip("/"):
        raise InputError(f"{str(source)!r} names no dataset; one of the Hugging Face hub is written hf:owner/name.")
    try:
        return datasets.load_dataset(name, split=split or "train", streaming=True)
    except (OSError, ValueError, ConnectionError) as error:
        raise InputError(
            f"The dataset {name!r} (split {split or 'train'!r}) cannot be opened: {error} "
            f"Give a folder written by save_to_disk instead, or hf:owner/name:split."
        ) from None


def dataset_rows(source: str | Path) -> Iterator[tuple[str, Any]] | None:
    """(prefix of ids, dataset) for a Hugging Face source, or None when `source` is something else."""
    if is_hub_name(source):
        return iter([("", stream_hub_dataset(source))])
    path = existing(source)
    return iter(load_dataset_folder(path)) if is_dataset_folder(path) else None


def class_names(dataset: Any, column: str) -> list[str] | None:
    """The names behind a dataset's integer labels, where it has them."""
    feature = (dataset.features or {}).get(column)
    return getattr(feature, "names", None)
