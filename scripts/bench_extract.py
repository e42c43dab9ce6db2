"""Speed of `extract` beside the bare forward pass of the same batches, on the embedded models.

    python scripts/bench_extract.py                       # smollm2 layer 15 and dinov2 block 9; minutes on 2 CPU cores
    python scripts/bench_extract.py --model smollm2 --device cuda --dtype bfloat16 --batch-size 256 --n 20000

The forward alone stops after the hook point, as extraction does, and is given batches that are ready. The whole verb
reads and tokenizes (or decodes, resizes and makes thumbnails), runs the same batches in the same precision, checks,
measures and writes everything to disk. The two take turns. Target: at least 0.9 of the forward's speed.
"""

import argparse
import io
import pydoc_data.topics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from saekit import capture, extract, load_backbone
from saekit.backbones import Backbone
from saekit.inputs import Document, ImageInput, SkipLog
from saekit.store import Example

POINTS = {"smollm2": "layers.15", "dinov2": "layers.9"}


def texts(n: int) -> list[Document]:
    """`n` English documents of 300 to 20,000 characters: Python's help topics, over and over."""
    topics = sorted(pydoc_data.topics.topics.items())
    return [Document(id=f"{name}-{i}", text=text) for i in range(n) for name, text in [topics[i % len(topics)]]]


def images(n: int, side: int) -> list[ImageInput]:
    """`n` JPEG files of noise that is smooth enough to look like a photograph to a decoder."""
    random = np.random.default_rng(0)
    encoded = []
    for _ in range(min(n, 32)):
        small = Image.fromarray(random.integers(0, 256, (24, 32, 3)).astype(np.uint8))
        file = io.BytesIO()
        small.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(file, format="JPEG", quality=90)
        encoded.append(file.getvalue())
    return [ImageInput(id=f"{i}.jpg", load=encoded[i % len(encoded)]) for i in range(n)]


def ready_batches(
    backbone: Backbone, inputs: list[Any], batch_size: int, n_tokens: int | None
) -> Iterator[dict[str, Any]]:
    """The forwards that `extract` does, with their inputs on the device."""
    examples: list[Example] = []
    n_rows = 0
    for example in backbone.examples(inputs, backbone.default_options(), SkipLog()):
        examples.append(example)
        n_rows += len(example.kept)
        if n_tokens is not None and n_rows >= n_tokens:
            break
    chunk = batch_size * (16 if backbone.kind == "text" else 4)
    for first in range(0, len(examples), chunk):
        for batch in backbone._batches(examples[first : first + chunk], batch_size, False):
            yield batch.inputs


def time_forward(backbone: Backbone, batches: list[dict[str, Any]], point: str) -> np.ndarray:
    """Seconds by the clock, and of the processor."""
    begin = clocks()
    for inputs in batches:
        with torch.inference_mode(), capture(backbone.model, [backbone.resolve(point)], stop=True) as captured:
            backbone.model(**inputs)
        assert len(captured) == 1
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return clocks() - begin


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def bench(name: str, arguments: argparse.Namespace) -> None:
    backbone = load_backbone(name, arguments.dtype, arguments.device)
    point = POINTS[name]
    is_text = backbone.kind == "text"
    n = arguments.n or (24_000 if is_text else 256)
    inputs = texts(n // 50) if is_text else images(n, arguments.side)
    limit = n if is_text else None
    batches = list(ready_batches(backbone, inputs, arguments.batch_size, limit))
    time_forward(backbone, batches[:1], point)
    forward, whole = [], []
    for _ in range(arguments.turns):
        forward.append(time_forward(backbone, batches, point))
        with tempfile.TemporaryDirectory() as folder:
            begin = clocks()
            store = extract(
                backbone,
                inputs,
                hook_points=[point],
                out=Path(folder) / "store",
                n_tokens=limit,
                batch_size=arguments.batch_size,
                progress=False,
            )
            whole.append(clocks() - begin)
            n_done = store.n_rows if is_text else store.n_examples
        print(f"{name}: forward {forward[-1][0]:.2f} s, extract {whole[-1][0]:.2f} s", file=sys.stderr)
    unit = "tokens" if is_text else "images"
    ratios, cpu_ratios = np.array([f / w for f, w in zip(forward, whole, strict=True)]).T
    speeds = [n_done / np.median(np.array(times)[:, 0]) for times in (forward, whole)]
    print(
        f"{name} {point} ({backbone.dtype}, {backbone.device}, batch {arguments.batch_size}, {n_done:,} {unit}): "
        f"forward alone {speeds[0]:,.1f} {unit}/s, extract {speeds[1]:,.1f} {unit}/s, ratio {np.median(ratios):.3f} "
        f"(median of {len(ratios)} turns, {ratios.min():.3f} to {ratios.max():.3f}; of processor time "
        f"{np.median(cpu_ratios):.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(POINTS), help="default: both")
    parser.add_argument("--n", type=int, help="tokens or images of a turn (default: 24,000 or 256)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", type=int, default=375, help="shorter side of the images in pixels")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    arguments = parser.parse_args()
    for name in [arguments.model] if arguments.model else sorted(POINTS):
        bench(name, arguments)


if __name__ == "__main__":
    main()
