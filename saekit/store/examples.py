"""What an activation row came from: examples, their tokens and the layout of tokens in an example. NumPy only."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from saekit.errors import ConfigError, InputError, StoreError
from saekit.files import hash_file, hash_json, read_meta
from saekit.store.format import EXAMPLES_KIND, EXAMPLES_SCHEMA, column_bytes, map_column


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Which positions of a model's token sequence are what.

    A sequence is `prefix` tokens (in order, by name) followed by content tokens. A patch is a content token of an
    image; a text window's prefix is the beginning-of-text token that saekit puts in front. Register tokens are prefix.
    """

    content: str
    """`"token"` (text) or `"patch"` (image)."""
    prefix: tuple[str, ...] = ()
    """Names of the tokens before the content, e.g. `("bos",)`, `("cls",)`, `("cls", "register_0", "register_1")`."""

    def __post_init__(self) -> None:
        if self.content not in ("token", "patch"):
            raise ConfigError(f"TokenLayout.content={self.content!r}; it is 'token' or 'patch'.")

    @property
    def n_prefix(self) -> int:
        return len(self.prefix)


@dataclass(frozen=True, kw_only=True)
class ImageGeometry:
    """Where the model looked in an image; enough to draw a patch on the original."""

    width: int
    """Width of the original, upright image in pixels."""
    height: int
    """Height of the original, upright image in pixels."""
    crop: tuple[float, float, float, float]
    """Left, top, right, bottom of the part the model saw, in pixels of the original."""
    grid: tuple[int, int]
    """Rows and columns of patches that tile the crop; content token i is at row i // columns, column i % columns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One input of the model: a window of one document's tokens, or one image."""

    document: str
    """Id of the document (windows of one text share it) or of the image, e.g. its path below the source folder."""
    kept: Int[np.ndarray, " n_kept"]
    """Positions (int32, ascending, in the model's token sequence, prefix included) whose activations are stored."""
    label: str | None = None
    """Class of the document or image, where the source has one."""
    caption: str | None = None
    """A line about the image, where the source has one."""
    token_ids: Int[np.ndarray, " n_tokens"] | None = None
    """Text: int32 ids of the whole window, prefix included."""
    start: int = 0
    """Text: index of the window's first content token in its document."""
    geometry: ImageGeometry | None = None
    """Image: where the model looked."""
    thumbnail: bytes = field(default=b"", repr=False)
    """Image: the whole upright original, small, as WebP."""
    pixels: np.ndarray | None = field(default=None, repr=False)
    """Image: the model's input, float32 [channel height width]; never stored."""

    @property
    def n_tokens(self) -> int:
        """Length of the model's token sequence as far as this example knows it (text only)."""
        if self.token_ids is None:
            raise ConfigError("n_tokens is known for text examples only; an image's length is the backbone's layout.")
        return len(self.token_ids)


META_KEYS = ("input_kind", "layout", "n_rows", "label_names", "files", "content_hash")


class ExampleTable:
    """The examples behind the rows of a store: their tokens, documents, labels, pictures. One directory, NumPy only.

    The directory can be copied whole. Arrays are memory-mapped; an instance may be shared between threads.
    """

    def __init__(self, path: str | Path, meta: dict[str, Any]) -> None:
        self.path = Path(path)
        self.meta = meta
        self._columns: dict[str, Shaped[np.ndarray, ...]] = {}
        self.kind: str = meta["input_kind"]
        """`"text"` or `"image"`."""
        self.layout = TokenLayout(content=meta["layout"]["content"], prefix=tuple(meta["layout"]["prefix"]))
        self.n_rows: int = meta["n_rows"]
        self.content_hash: str = meta["content_hash"]
        self.label_names: list[str] = meta["label_names"]
        """Names of the labels, sorted."""
        self.row_example: Int[np.ndarray, " n_rows"] = self._column("row_example.i32")
        """Which example a row comes from, ascending."""
        self.row_position: Int[np.ndarray, " n_rows"] = self._column("row_position.i32")
        """Position in the model's token sequence that a row comes from, ascending inside an example."""
        self.row_offsets: Int[np.ndarray, " n_examples_plus_1"] = self._column("row_offsets.i64")
        """Rows of example i are `row_offsets[i]` up to `row_offsets[i + 1]`."""
        self.document_of: Int[np.ndarray, " n_examples"] = self._column("document_of.i32")
        """Which distinct document (an index into `documents`) an example comes from."""
        self.label_of: Int[np.ndarray, " n_examples"] = self._column("label_of.i32")
        """Which label (an index into `label_names`) an example has; -1 is none."""

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> "ExampleTable":
        """Open a table. Raises `StoreError` that lists every missing, truncated or (with `verify`) altered file."""
        path = Path(path)
        meta = read_meta(path, EXAMPLES_KIND, EXAMPLES_SCHEMA, StoreError, keys=META_KEYS)
        problems = [problem for name, file in meta["files"].items() if (problem := _problem(path / name, file, verify))]
        if problems:
            raise StoreError(
                f"{len(problems)} of {len(meta['files'])} files in {path} are unusable. {' '.join(problems)}"
            )
        return cls(path, meta)

    def __len__(self) -> int:
        return len(self.document_of)

    def __getitem__(self, example: int) -> Example:
        """Example number `example`, without pixels. Raises `IndexError` past the end."""
        self._check(example)
        label, is_text = int(self.label_of[example]), self.kind == "text"
        return Example(
            document=self.documents[self.document_of[example]],
            kept=np.array(self.kept(example)),
            label=None if label < 0 else self.label_names[label],
            caption=None if is_text else self.caption(example),
            token_ids=np.array(self.token_ids(example)) if is_text else None,
            start=int(self._column("start.i32")[example]) if is_text else 0,
            geometry=None if is_text else self.geometry(example),
            thumbnail=b"" if is_text else self.thumbnail(example),
        )

    @cached_property
    def documents(self) -> list[str]:
        """Ids of the distinct documents (or images), in the order of the source."""
        return [item.decode() for item in _split(self._ragged("documents"))]

    @cached_property
    def vocabulary(self) -> list[bytes] | None:
        """Bytes of every token id of the language model's tokenizer; None for images."""
        return _split(self._ragged("vocabulary")) if "vocabulary.u8" in self.meta["files"] else None

    def kept(self, example: int) -> Int[np.ndarray, " n_kept"]:
        """Positions of `example` that are rows."""
        self._check(example)
        return self.row_position[self.row_offsets[example] : self.row_offsets[example + 1]]

    def token_ids(self, example: int) -> Int[np.ndarray, " n_tokens"]:
        """Token ids of the whole window, prefix included. Raises `InputError` for images."""
        self._check(example)
        if self.kind != "text":
            raise InputError(f"{self.path} holds images; they have no token ids.")
        offsets = self._column("tokens_offsets.i64")
        return self._column("tokens.i32")[offsets[example] : offsets[example + 1]]

    def token_at(self, example: int, position: int) -> int:
        """Token id at `position` of the sequence of `example`. Raises `IndexError` past its end."""
        ids = self.token_ids(example)
        if not 0 <= position < len(ids):
            raise IndexError(f"example {example} has {len(ids)} tokens, not a position {position}.")
        return int(ids[position])

    def token_text(self, token: int) -> str:
        """The token's text; bytes that are no whole UTF-8 character by themselves show as `\\xe2`."""
        if self.vocabulary is None:
            raise InputError(f"{self.path} has no vocabulary; tokens of this store cannot be shown as text.")
        if not 0 <= token < len(self.vocabulary):
            return f"<{token}>"
        return self.vocabulary[token].decode("utf-8", "backslashreplace")

    def caption(self, example: int) -> str | None:
        """The line about an image, where the source had one."""
        self._check(example)
        text = _item(self._ragged("captions"), example).decode()
        return text or None

    def thumbnail(self, example: int) -> bytes:
        """The whole upright image, small, as an encoded WebP file."""
        self._check(example)
        return _item(self._ragged("thumbnails"), example)

    def geometry(self, example: int) -> ImageGeometry:
        """Where the model looked in an image."""
        self._check(example)
        if self.kind != "image":
            raise InputError(f"{self.path} holds texts; they have no geometry.")
        row: Float[np.ndarray, " 8"] = self._column("geometry.f64")[example]
        width, height, left, top, right, bottom, n_rows, n_columns = (float(value) for value in row)
        return ImageGeometry(
            width=int(width),
            height=int(height),
            crop=(left, top, right, bottom),
            grid=(int(n_rows), int(n_columns)),
        )

    def _column(self, name: str) -> Shaped[np.ndarray, "..."]:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = map_column(self.path / name, self.meta["files"][name]["shape"])
        return column

    def _ragged(self, name: str) -> tuple[Shaped[np.ndarray, " n"], Int[np.ndarray, " m"]]:
        return self._column(f"{name}.u8"), self._column(f"{name}_offsets.i64")

    def _check(self, example: int) -> None:
        if not 0 <= example < len(self):
            raise IndexError(f"{self.path} has examples 0 to {len(self) - 1}, not {example}.")


def table_hash(files: dict[str, Any], meta: dict[str, Any]) -> str:
    """Content hash of a table: of its files' hashes and of what the rest of its meta.json says."""
    return hash_json({"files": files, **{key: meta[key] for key in ("input_kind", "layout", "n_rows", "label_names")}})


def _item(ragged: tuple[Shaped[np.ndarray, " n"], Int[np.ndarray, " m"]], i: int) -> bytes:
    data, offsets = ragged
    return data[offsets[i] : offsets[i + 1]].tobytes()


def _split(ragged: tuple[Shaped[np.ndarray, " n"], Int[np.ndarray, " m"]]) -> list[bytes]:
    data, offsets = ragged
    whole, borders = data.tobytes(), offsets.tolist()
    return [whole[borders[i] : borders[i + 1]] for i in range(len(borders) - 1)]


def _problem(path: Path, file: dict[str, Any], verify: bool) -> str | None:
    expected = column_bytes(path.name, file["shape"])
    if not path.exists():
        return f"Missing: {path.name}."
    if path.stat().st_size != expected:
        return f"Wrong size: {path.name} (expected {expected} bytes, found {path.stat().st_size})."
    if verify and (found := hash_file(path)) != file["blake2b"]:
        return f"Altered: {path.name} (expected BLAKE2b {file['blake2b']}, found {found})."
    return None
