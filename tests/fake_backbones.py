"""Backbones without a model, for tests of what is done with activations: each row is a fixed function of its token."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekit.backbones import ImageBackbone, ImageTokens, TextBackbone, TextWindows
from saekit.errors import InputError
from saekit.inputs import SkipLog
from saekit.store import Example, ImageGeometry, TokenLayout

POINTS = ("layers.0", "layers.1")


class _Fake:
    spec, family, n_layers, d_model = "fake", "fake", 2, 8
    device, dtype = torch.device("cpu"), torch.float32
    seconds_per_batch = 0.0

    def __init__(self) -> None:
        self.n_batches = 0

    def resolve(self, hook_point: str) -> str:
        return hook_point

    def width(self, hook_point: str) -> int:
        return self.d_model * (1 + POINTS.index(hook_point))

    def describe(self) -> dict[str, Any]:
        return {"spec": self.spec, "kind": self.kind, "d_model": self.d_model}

    def activations(
        self, examples: Sequence[Example], hook_points: Sequence[str], batch_size: int, pack: bool = False
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        order = sorted(range(len(examples)), key=lambda index: -len(examples[index].kept))
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            self.n_batches += 1
            time.sleep(self.seconds_per_batch)
            keys = np.concatenate([self.keys(examples[index]) for index in indices])
            yield indices, {point: self.rows(keys, point) for point in hook_points}

    def rows(self, keys: np.ndarray, point: str) -> Tensor:
        """What is captured for tokens whose `keys` say which they are."""
        angles = np.outer(keys + 1, np.arange(1, self.width(point) + 1))
        return torch.from_numpy(np.sin(angles).astype(np.float32))


class FakeText(_Fake, TextBackbone):
    """Bytes are tokens; the prefix is token 256. A document with "POISON" gives a NaN, one with "LOUD" 1e6."""

    kind = "text"

    def default_options(self) -> TextWindows:
        return TextWindows(context_size=16, min_tokens=2)

    def layout_for(self, options: TextWindows | ImageTokens) -> TokenLayout:
        return TokenLayout(content="token", prefix=("bos",))

    def token_bytes(self) -> list[bytes]:
        return [bytes([byte]) for byte in range(256)] + [b"<bos>"]

    def examples(self, inputs: Iterable[Any], options: Any, skipped: SkipLog) -> Iterator[Example]:
        step = options.context_size - 1
        for document in inputs:
            ids = np.frombuffer(document.text.encode(), dtype=np.uint8).astype(np.int32)
            if len(ids) < options.min_tokens:
                skipped.add(document.id, "too short")
            for start in range(0, len(ids), step):
                window = np.concatenate([[256], ids[start : start + step]]).astype(np.int32)
                if len(window) > options.min_tokens:
                    kept = np.arange(options.drop_first, len(window), dtype=np.int32)
                    yield Example(document=document.id, label=document.label, token_ids=window, start=start, kept=kept)

    def keys(self, example: Example) -> np.ndarray:
        ids, text = example.token_ids.astype(np.float64), bytes(example.token_ids[1:].astype(np.uint8))
        if b"POISON" in text:
            ids[3] = np.nan
        if b"LOUD" in text:
            ids[2] = 1e6
        return (ids * 100 + np.arange(len(ids)))[example.kept]

    def rows(self, keys: np.ndarray, point: str) -> Tensor:
        rows = super().rows(keys, point)
        rows[torch.from_numpy(keys > 1e7), 1] = 1e6
        return rows


class FakeImages(_Fake, ImageBackbone):
    """A 2 x 2 grid of patches behind a class token; rows depend on the mean colour of a patch."""

    kind = "image"

    def default_options(self) -> ImageTokens:
        return ImageTokens()

    def layout_for(self, options: TextWindows | ImageTokens) -> TokenLayout:
        return TokenLayout(content="patch", prefix=("cls",))

    def examples(self, inputs: Iterable[Any], options: Any, skipped: SkipLog) -> Iterator[Example]:
        kept = np.arange(1, 5, dtype=np.int32)
        for image in inputs:
            try:
                picture = image.open().convert("RGB")
            except InputError:
                skipped.add(image.id, "not a readable image")
                continue
            small = np.asarray(picture.resize((2, 2)), dtype=np.float32).transpose(2, 0, 1)
            geometry = ImageGeometry(
                width=picture.width,
                height=picture.height,
                crop=(0.0, 0.0, float(picture.width), float(picture.height)),
                grid=(2, 2),
            )
            yield Example(
                document=image.id,
                label=image.label,
                caption=image.caption,
                kept=kept,
                geometry=geometry,
                thumbnail=f"thumbnail of {image.id}".encode(),
                pixels=small,
            )

    def keys(self, example: Example) -> np.ndarray:
        return example.pixels.mean(0).ravel()


# What the abstract methods do is no part of these tests.
FakeText.__abstractmethods__ = FakeImages.__abstractmethods__ = frozenset()
