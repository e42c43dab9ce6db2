"""Small real stores made from random arrays, for tests of whatever reads a store."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saekit.store import ActivationStore, Example, ImageGeometry, StoreWriter, TokenLayout

VOCABULARY: list[bytes] = [
    b"<|endoftext|>",
    *[b"\xe2", b"\x98", b"\x83", b"\n", b"<script>alert(1)</script>", "é".encode()],
    *[f" word{i}".encode() for i in range(93)],
]
LABELS = ("animals", "food", "tools")
GRID = (4, 5)


def make_tiny_store(
    path: Path | str,
    kind: str = "text",
    n_examples: int = 24,
    d: int = 16,
    seed: int = 0,
    *,
    dtype: str = "bf16",
    hook_points: Sequence[str] = ("layers.1",),
    examples_per_shard: int = 10,
    rows: np.ndarray | None = None,
) -> ActivationStore:
    """A store of `n_examples` texts (windows of 6 to 20 tokens, two windows of a document) or images (4 x 5 patches).

    `rows` [n_rows d] replaces the random activations of the first hook point (one row for each kept token). Every
    seventh example has no label.
    """
    random = np.random.default_rng(seed)
    make = _text_example if kind == "text" else _image_example
    examples = [make(i, random) for i in range(n_examples)]
    layout = (
        TokenLayout(content="token", prefix=("bos",))
        if kind == "text"
        else TokenLayout(content="patch", prefix=("cls",))
    )
    n_rows = sum(len(example.kept) for example in examples)
    values = {point: random.standard_normal((n_rows, d)).astype(np.float32) + 0.5 for point in hook_points}
    if rows is not None:
        values[hook_points[0]] = np.asarray(rows, dtype=np.float32)
    plan = {
        "backbone": {"spec": f"tiny-{kind}", "kind": kind, "d_model": d, "n_layers": 2},
        "options": {"kind": "TextWindows" if kind == "text" else "ImageTokens"},
        "source": "random",
    }
    with StoreWriter(path, hook_points=dict.fromkeys(hook_points, d), dtype=dtype, layout=layout, plan=plan) as writer:
        first = 0
        for start in range(0, n_examples, examples_per_shard):
            part = examples[start : start + examples_per_shard]
            last = first + sum(len(example.kept) for example in part)
            writer.write_shard(part, {point: torch.from_numpy(v[first:last]) for point, v in values.items()})
            first = last
        writer.finish(vocabulary=VOCABULARY if kind == "text" else None)
    return ActivationStore.open(path)


def _text_example(i: int, random: np.random.Generator) -> Example:
    n_tokens = int(random.integers(6, 21))
    ids = random.integers(1, len(VOCABULARY), n_tokens).astype(np.int32)
    ids[0] = 0
    return Example(
        document=f"doc-{i // 2:03d}",
        kept=np.arange(1, n_tokens, dtype=np.int32),
        label=None if i // 2 % 7 == 6 else LABELS[i // 2 % len(LABELS)],
        token_ids=ids,
        start=(i % 2) * 20,
    )


def _image_example(i: int, random: np.random.Generator) -> Example:
    width, height = int(random.integers(20, 60)), int(random.integers(20, 60))
    picture = io.BytesIO()
    pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(picture, format="WEBP", quality=80)
    label = None if i % 7 == 6 else LABELS[i % len(LABELS)]
    return Example(
        document=f"{label or 'loose'}/{i:03d}.png",
        kept=np.arange(1, 1 + GRID[0] * GRID[1], dtype=np.int32),
        label=label,
        caption=f"picture {i}" if i % 2 else None,
        geometry=ImageGeometry(width=width, height=height, crop=(0.0, 0.0, float(width), float(height)), grid=GRID),
        thumbnail=picture.getvalue(),
    )
