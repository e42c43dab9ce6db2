"""ExampleTableWriter: turns a stream of examples into a directory that `ExampleTable` reads. NumPy only."""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from saekit import __version__
from saekit.files import hash_file, sync_directory, write_json
from saekit.store.columns import ExampleColumns, columns_of
from saekit.store.examples import Example, TokenLayout, table_hash
from saekit.store.format import (
    COLUMN_DTYPES,
    EXAMPLES_KIND,
    EXAMPLES_SCHEMA,
    file_record,
    offsets_of,
)

LARGE = ("row_example.i32", "row_position.i32", "tokens.i32", "thumbnails.u8")
"""Columns that grow with rows or pictures: written as they come, the others kept until the end."""


class ExampleTableWriter:
    """Writes examples to a temporary directory that takes its name in `finish`, whole.

    `kind` is `"text"` or `"image"`. On leaving a `with` block by an exception the temporary directory is removed.
    """

    def __init__(self, path: str | Path, *, kind: str, layout: TokenLayout) -> None:
        self.path = Path(path)
        self.kind, self.layout = kind, layout
        self.n_examples = self.n_rows = 0
        self._temporary = self.path.with_name(f".{self.path.name}.tmp")
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        is_text = kind == "text"
        large = [name for name in LARGE if (name != "thumbnails.u8" if is_text else name != "tokens.i32")]
        self._open = ExitStack()
        self._files = {name: self._create(name) for name in large}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._documents: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._document_of: list[int] = []
        self._label_of: list[int] = []
        self._captions: list[bytes] = []
        self._small: dict[str, list[Shaped[np.ndarray, ...]]] = {}

    def append(self, examples: Iterable[Example]) -> None:
        """Add examples, in order."""
        self.extend(columns_of(list(examples), self.kind))

    def extend(self, columns: ExampleColumns) -> None:
        """Add examples that are columns already."""
        for document, label in zip(columns.documents, columns.labels, strict=True):
            self._document_of.append(self._documents.setdefault(document, len(self._documents)))
            self._label_of.append(-1 if label is None else self._labels.setdefault(label, len(self._labels)))
        n_examples, n_rows = len(columns.documents), len(columns.kept)
        numbers = np.arange(self.n_examples, self.n_examples + n_examples)
        self._write("row_example.i32", np.repeat(numbers, columns.n_kept))
        self._write("row_position.i32", columns.kept)
        if self.kind == "text":
            self._write("tokens.i32", columns.tokens)
        else:
            self._write("thumbnails.u8", columns.thumbnails)
            self._captions.extend((caption or "").encode() for caption in columns.captions)
        for name in ("n_kept", "sizes", "starts", "geometry"):
            self._small.setdefault(name, []).append(getattr(columns, name))
        self.n_examples += n_examples
        self.n_rows += n_rows

    def finish(self, vocabulary: Sequence[bytes] | None = None) -> None:
        """Write what is left and give the directory its name. `vocabulary`: the bytes of every token id."""
        if not self._small:
            self.append([])
        small = {name: np.concatenate(parts) for name, parts in self._small.items()}
        names = sorted(self._labels)
        place = {name: i for i, name in enumerate(names)}
        new_label = np.array([*(place[label] for label in self._labels), -1], dtype=np.int32)
        self._whole("label_of.i32", new_label[np.array(self._label_of, dtype=np.int64)])
        self._whole("document_of.i32", np.array(self._document_of, dtype=np.int32))
        self._whole("row_offsets.i64", offsets_of(small["n_kept"]))
        self._ragged("documents", [name.encode() for name in self._documents])
        if self.kind == "text":
            self._whole("start.i32", small["starts"])
            self._whole("tokens_offsets.i64", offsets_of(small["sizes"]))
            if vocabulary is not None:
                self._ragged("vocabulary", vocabulary)
        else:
            self._whole("geometry.f64", small["geometry"])
            self._whole("thumbnails_offsets.i64", offsets_of(small["sizes"]))
            self._ragged("captions", self._captions)
        files = {name: self._record(name) for name in sorted(self._files)}
        self._open.close()
        meta = {
            "kind": EXAMPLES_KIND,
            "schema": EXAMPLES_SCHEMA,
            "saekit": __version__,
            "input_kind": self.kind,
            "layout": {"content": self.layout.content, "prefix": list(self.layout.prefix)},
            "n_examples": self.n_examples,
            "n_documents": len(self._documents),
            "n_rows": self.n_rows,
            "label_names": names,
            "files": files,
        }
        write_json(self._temporary / "meta.json", {**meta, "content_hash": table_hash(files, meta)})
        self._temporary.rename(self.path)
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Remove what is not finished."""
        self._open.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> "ExampleTableWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _create(self, name: str) -> BinaryIO:
        return self._open.enter_context(open(self._temporary / name, "wb"))

    def _write(self, name: str, values: Shaped[np.ndarray, "..."]) -> None:
        self._files[name].write(values.astype(COLUMN_DTYPES[name.rpartition(".")[2]]).tobytes())

    def _whole(self, name: str, values: Shaped[np.ndarray, "..."]) -> None:
        self._files[name] = self._create(name)
        self._write(name, values)
        self._shapes[name] = values.shape

    def _ragged(self, name: str, items: Sequence[bytes]) -> None:
        self._whole(f"{name}_offsets.i64", offsets_of([len(item) for item in items]))
        self._whole(f"{name}.u8", np.frombuffer(b"".join(items), dtype=np.uint8))

    def _record(self, name: str) -> dict[str, object]:
        file = self._files[name]
        file.flush()
        os.fsync(file.fileno())
        n_items = file.tell() // COLUMN_DTYPES[name.rpartition(".")[2]].itemsize
        return file_record(self._shapes.get(name, (n_items,)), hash_file(self._temporary / name))
