"""Small real indexes with known contents for the tests of the index and of the explorer."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saekit.index import FeatureIndex
from saekit.index.builder import Encode, IndexPlan, RowCodes, write_index
from saekit.store import Example, ExampleTableWriter, ImageGeometry, TokenLayout

VOCABULARY: list[bytes] = [
    b"<|endoftext|>",
    b" bank",
    b" river",
    b" money",
    b" ball",
    b" goal",
    b"<script>",
    b"alert(1)",
    b"</script>",
    "é".encode()[:1],
    "é".encode()[1:],
    *(bytes([byte]) for byte in "🙂".encode()),
    b"\n",
    b"the",
    b" The",
    b"'",
    b'"',
    b"&amp;",
    " naïve".encode(),
    b" never",
]
BANK, SCRIPT, DENSE, DEAD, SPORT, EMOJI = 0, 1, 2, 3, 4, 5
"""Features of the tiny text index: on " bank", on "<script>", on every token, on nothing, on sport, on the emoji."""
CAT, RED_CORNER = 0, 1
"""Features of the tiny image index: on patches of cats, on the top left patch of every image (2 and 3 as above)."""
LABELS = ("business", "sport")
ANIMALS = ("cat", "dog", "fish")
GRID = (4, 6)
D_IN = 8


def make_tiny_index(
    path: str | Path, kind: str = "text", *, d_sae: int = 24, n_documents: int = 30, seed: int = 0, **meta: Any
) -> FeatureIndex:
    """Build an index of `kind` at `path` from a known code matrix; `meta` overrides entries of its meta.json.

    Texts: two windows of 16 tokens from each of `n_documents` documents with labels, a prefix token that is not kept, a
    logit lens. Images: one of 4 x 6 patches per document behind a CLS token that is not kept, thumbnails, classes.
    """
    import torch

    from saekit.index.dictionary import dictionary_arrays

    path = Path(path)
    generator = np.random.default_rng(seed)
    examples = tiny_examples(kind, n_documents, generator)
    table = path.with_name(f"{path.name}-examples")
    write_examples(table, kind, examples)
    codes = tiny_codes(kind, examples, d_sae, generator)
    plan = IndexPlan(d_sae=d_sae, examples=table, meta={**tiny_meta(kind, d_sae), **meta}, block_rows=200)
    torch.manual_seed(seed)
    unembedding = (torch.randn(D_IN, len(VOCABULARY)), torch.rand(D_IN)) if kind == "text" else None
    write_index(
        path,
        plan,
        encode_dense(codes),
        lambda: dictionary_arrays(torch.randn(D_IN, d_sae), torch.randn(d_sae, D_IN), unembedding),
        progress=False,
    )
    return FeatureIndex.open(path)


def dense(index: FeatureIndex) -> np.ndarray:
    """The code matrix of an index, float64 [n_rows d_sae], from its feature-major codes."""
    codes = np.zeros((index.n_rows, index.d_sae))
    for feature in range(index.d_sae):
        rows, values = index.activations(feature)
        codes[rows, feature] = values
    return codes


def tiny_meta(kind: str, d_sae: int) -> dict[str, Any]:
    """What a real build writes about the store, the checkpoint and the backbone."""
    content, prefix = ("token", ["bos"]) if kind == "text" else ("patch", ["cls"])
    backbone = {"spec": "tiny", "kind": kind, "d_model": D_IN, "n_layers": 2}
    return {
        "hook_point": "layers.1",
        "backbone": backbone,
        "layout": {"content": content, "prefix": prefix},
        "store": {"path": "/nowhere/acts", "content_hash": "0" * 32, "is_training_store": True},
        "checkpoint": {
            "path": "/nowhere/run",
            "weights_hash": "1" * 32,
            "class": "SparseAutoencoder",
            "config": {"kind": "SparseAutoencoderConfig", "d_in": D_IN, "d_sae": d_sae},
        },
        "has_logit_lens": kind == "text",
    }


def tiny_examples(kind: str, n_documents: int, generator: np.random.Generator) -> list[Example]:
    if kind == "image":
        return [_image(number, generator) for number in range(n_documents)]
    return [_window(number, part, generator) for number in range(n_documents) for part in range(2)]


def write_examples(path: Path, kind: str, examples: list[Example]) -> None:
    layout = (
        TokenLayout(content="token", prefix=("bos",))
        if kind == "text"
        else TokenLayout(content="patch", prefix=("cls",))
    )
    with ExampleTableWriter(path, kind=kind, layout=layout) as writer:
        writer.append(examples)
        writer.finish(VOCABULARY if kind == "text" else None)


def tiny_codes(kind: str, examples: list[Example], d_sae: int, generator: np.random.Generator) -> np.ndarray:
    """The dense code matrix [n_rows d_sae], float32, with the features named at the top of this file."""
    labels = np.concatenate([[example.label or ""] * len(example.kept) for example in examples])
    positions = np.concatenate([example.kept for example in examples])
    n_rows = len(positions)
    strength = generator.gamma(2.0, 1.5, size=(n_rows, d_sae)) + 0.01
    codes = np.where(generator.random((n_rows, d_sae)) < 0.06, strength, 0.0)
    codes[:, DENSE] = strength[:, DENSE]
    codes[:, DEAD] = 0.0
    if kind == "text":
        tokens = np.concatenate(
            [example.token_ids[example.kept] for example in examples if example.token_ids is not None]
        )
        codes[:, BANK] = np.where(tokens == VOCABULARY.index(b" bank"), 5 + strength[:, BANK], 0.0)
        codes[:, SCRIPT] = np.where(tokens == VOCABULARY.index(b"<script>"), strength[:, SCRIPT], 0.0)
        codes[:, SPORT] = np.where(labels == "sport", codes[:, SPORT] + strength[:, SPORT] * (positions % 3 == 0), 0.0)
        codes[:, EMOJI] = np.where(np.isin(tokens, [11, 12, 13, 14]), strength[:, EMOJI], 0.0)
    else:
        codes[:, CAT] = np.where((labels == "cat") & (generator.random(n_rows) < 0.4), strength[:, CAT], 0.0)
        codes[:, RED_CORNER] = np.where(positions == 1, strength[:, RED_CORNER], 0.0)
    return codes.astype(np.float32)


def encode_dense(codes: np.ndarray, batch_size: int = 128) -> Encode:
    """An encoder that looks its rows up in a dense matrix."""

    def encode(start: int, stop: int) -> Iterator[RowCodes]:
        for at in range(start, stop, batch_size):
            part = codes[at : min(at + batch_size, stop)]
            rows, features = np.nonzero(part)
            yield RowCodes(np.bincount(rows, minlength=len(part)), features, part[rows, features])

    return encode


def _window(number: int, part: int, generator: np.random.Generator) -> Example:
    label = LABELS[number % 2]
    likely = [1, 2, 3] if label == "business" else [4, 5]
    tokens = generator.choice([*likely, *likely, *range(1, len(VOCABULARY) - 1)], size=16).astype(np.int32)
    tokens[0] = 0
    if number % 5 == 0:
        tokens[5:8] = [6, 7, 8]
    if number % 7 == 0:
        tokens[9:15] = [9, 10, 11, 12, 13, 14]
    if part == 0:
        tokens[3] = likely[0]
    return Example(
        document=f"{label}/{number:03d}.txt",
        kept=np.arange(1, 16, dtype=np.int32),
        label=label,
        token_ids=tokens,
        start=15 * part,
    )


def _image(number: int, generator: np.random.Generator) -> Example:
    label = ANIMALS[number % 3]
    width, height = (96, 64) if number % 2 else (64, 96)
    pixels = np.full((height, width, 3), generator.integers(40, 220, size=3), dtype=np.uint8)
    pixels[: height // 4, : width // 4] = (220, 30, 30)
    thumbnail = io.BytesIO()
    Image.fromarray(pixels).save(thumbnail, format="WEBP", lossless=True)
    # The model sees the largest 3:2 part of the middle.
    crop_width, crop_height = (width, height) if width > height else (width, width * 2 / 3)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return Example(
        document=f"{label}/{number:03d}.png",
        kept=np.arange(1, 1 + GRID[0] * GRID[1], dtype=np.int32),
        label=label,
        caption=f"A {label} <b>in a field</b>." if number % 2 else None,
        geometry=ImageGeometry(
            width=width, height=height, crop=(left, top, left + crop_width, top + crop_height), grid=GRID
        ),
        thumbnail=thumbnail.getvalue(),
    )
