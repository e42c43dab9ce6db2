"""ExampleColumns: a batch of examples as arrays, the form in which they are written. NumPy only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from saekit.errors import StoreError
from saekit.store.examples import Example
from saekit.store.format import geometry_columns


@dataclass(frozen=True, eq=False)
class ExampleColumns:
    """The examples of a shard, column by column."""

    documents: list[str]
    labels: list[str | None]
    captions: list[str | None]
    n_kept: Int[np.ndarray, " n_examples"]
    kept: Int[np.ndarray, " n_rows"]
    starts: Int[np.ndarray, " n_examples"]
    sizes: Int[np.ndarray, " n_examples"]
    """Tokens of each text, or bytes of each thumbnail."""
    tokens: Int[np.ndarray, " n_tokens"]
    thumbnails: UInt8[np.ndarray, " n_bytes"]
    geometry: Float[np.ndarray, "n_examples 8"]

    def to_arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Plain arrays, for `numpy.savez`."""
        names = json.dumps([self.documents, self.labels, self.captions]).encode()
        arrays = {key: value for key, value in self.__dict__.items() if isinstance(value, np.ndarray)}
        return {**arrays, "names": np.frombuffer(names, dtype=np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "ExampleColumns":
        """The inverse of `to_arrays`."""
        documents, labels, captions = json.loads(arrays["names"].tobytes())
        rest = {key: arrays[key] for key in ("n_kept", "kept", "starts", "sizes", "tokens", "thumbnails", "geometry")}
        return cls(documents, labels, captions, **rest)


def columns_of(examples: Sequence[Example], kind: str) -> ExampleColumns:
    """`examples` as columns. Raises `StoreError` when one is not of `kind` ("text" or "image")."""
    for example in examples:
        has = "text" if example.token_ids is not None else "image" if example.geometry is not None else "neither"
        if has != kind:
            raise StoreError(
                f"Example {example.document!r} is of kind {has!r} among examples of kind {kind!r}; a text has "
                f"token_ids, an image a geometry."
            )
    tokens = [example.token_ids for example in examples if example.token_ids is not None]
    items = tokens if kind == "text" else [example.thumbnail for example in examples]
    return ExampleColumns(
        documents=[_clean(example.document) for example in examples],
        labels=[None if example.label is None else _clean(example.label) for example in examples],
        captions=[None if example.caption is None else _clean(example.caption) for example in examples],
        n_kept=np.array([len(example.kept) for example in examples], dtype=np.int64),
        kept=_joined([example.kept for example in examples]),
        starts=np.array([example.start for example in examples], dtype=np.int32),
        sizes=np.array([len(item) for item in items], dtype=np.int64),
        tokens=_joined(tokens),
        thumbnails=np.frombuffer(b"".join(example.thumbnail for example in examples), dtype=np.uint8),
        geometry=np.array([_geometry(example) for example in examples]).reshape(-1, len(geometry_columns())),
    )


def _clean(name: str) -> str:
    """`name` with lone surrogates (file names that are not UTF-8 have them) written out, so that it is valid UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _joined(parts: Sequence[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " total"]:
    return np.concatenate([np.zeros(0, dtype=np.int32), *parts]).astype(np.int32)


def _geometry(example: Example) -> tuple[float, ...]:
    geometry = example.geometry
    if geometry is None:
        return (0.0,) * len(geometry_columns())
    return tuple(map(float, (geometry.width, geometry.height, *geometry.crop, *geometry.grid)))
