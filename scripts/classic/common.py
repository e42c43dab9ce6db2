"""What the classic demonstrations share: the style of their figures, and how a measured number is kept.

A demonstration is one file with a docstring (first line: its title) and a function `main(demo: Demo)`. It measures,
calls `demo.row` once per claim and `demo.save_figure` once; `start(main)` at its end does the rest. With `--smoke` it
runs on stand-in data for seconds and its numbers mean nothing.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_data import Split, debian_descriptions, digits, fashion_mnist  # noqa: F401 - everything is had from here
from torch import Tensor

from saekit.errors import require
from saekit.files import write_json

ROOT = Path(__file__).parents[2]
# One colour per role, legible on white and told apart by the colour-blind (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F"
MAX_FIGURE_BYTES = 80_000


@dataclass
class Demo:
    """One run of one demonstration: what it was told and what it has measured."""

    name: str
    title: str
    smoke: bool
    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def pick(self, real: Any, smoke: Any) -> Any:
        """`real`, or in a smoke run `smoke`."""
        return smoke if self.smoke else real

    def row(self, claim: str, measured: float, reference: str, source: str, met: bool) -> None:
        """Keep one number. `reference` is what it must be, in words or digits; `source` where that comes from."""
        self.rows.append(
            {"claim": claim, "measured": float(measured), "reference": reference, "from": source, "met": bool(met)}
        )
        verdict = "smoke" if self.smoke else "met" if met else "NOT MET"
        print(f"{verdict}: {claim}: {measured:.6g} (reference {reference}; {source})", flush=True)

    def save_figure(self, figure: Any) -> None:
        """Write the demonstration's picture, in 256 colours and small enough for a repository."""
        from PIL import Image

        path = self.out / "images" / "classic" / f"{self.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
        for n_colors in (256, 128, 64, 32, 16):
            with Image.open(path) as image:
                small = image.convert("RGB").quantize(n_colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            small.save(path, optimize=True)
            if path.stat().st_size <= MAX_FIGURE_BYTES:
                return
        raise RuntimeError(f"{path} has {path.stat().st_size} bytes; draw it smaller.")


def start(main: Callable[[Demo], None]) -> None:
    """Run a demonstration from the command line: `--smoke`, `--out DIR` (default: the documentation)."""
    module = sys.modules["__main__"]
    title = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")
    parser = argparse.ArgumentParser(description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="seconds on stand-in data, to see that everything runs")
    parser.add_argument("--out", type=Path, help="directory of images/classic/*.png and classic/*.json (default: docs)")
    arguments = parser.parse_args()
    if arguments.smoke and arguments.out is None:
        parser.error("--smoke needs --out: its numbers would replace the real ones of the documentation")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    style()
    torch.manual_seed(0)
    demo = Demo(Path(str(module.__file__)).stem, title, arguments.smoke, arguments.out or ROOT / "docs")
    began = time.monotonic()
    main(demo)
    record = {"name": demo.name, "title": demo.title, "smoke": demo.smoke, "rows": demo.rows}
    path = demo.out / "classic" / f"{demo.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**record, "seconds": round(time.monotonic() - began, 1)})
    if not demo.smoke and not all(row["met"] for row in demo.rows):
        sys.exit(f"{demo.name}: not every claim was met")


def style() -> None:
    """matplotlib without frames and with readable sizes."""
    matplotlib = require("matplotlib", "classic")
    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY]),
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
            "image.cmap": "gray_r",
            "image.interpolation": "nearest",
        }
    )


def tile(images: Tensor, n_columns: int, side: int | tuple[int, int] = 28, gap: int = 1, fill: float = 0) -> np.ndarray:
    """Flat images `[n d_in]` with values in 0..1 as one picture, `fill` between them."""
    height, width = (side, side) if isinstance(side, int) else side
    n_rows = -(-len(images) // n_columns)
    canvas = np.full((n_rows * (height + gap) - gap, n_columns * (width + gap) - gap), fill, dtype=np.float32)
    for i, image in enumerate(images.detach().cpu().clamp(0, 1).numpy()):
        top, left = i // n_columns * (height + gap), i % n_columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.reshape(height, width)
    return canvas


def neighbours_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 15) -> float:
    """Share of test rows whose label is that of most of their `k` nearest training rows."""
    neighbors = require("sklearn.neighbors", "classic")
    classifier = neighbors.KNeighborsClassifier(k).fit(train.numpy(), train_labels.numpy())
    return float(classifier.score(test.numpy(), test_labels.numpy()))


@torch.no_grad()
def sum_of_squares(model: torch.nn.Module, x: Tensor) -> float:
    """Squared error of the reconstruction of `x`, summed over features, mean over rows."""
    model.eval()
    return sum(float((model(rows) - rows).square().sum()) for rows in x.split(2000)) / len(x)


def pca_sum_of_squares(train: Tensor, test: Tensor, k: int) -> float:
    """What PCA with `k` components, fitted on `train`, leaves of `test`: squared error, mean over rows."""
    mean, axes = _principal_axes(train)
    rest = (test.double() - mean) - (test.double() - mean) @ axes[:k].T @ axes[:k]
    return float(rest.square().sum(1).mean())


def pca_codes(train: Tensor, x: Tensor, k: int) -> Tensor:
    """PCA's coordinates of `x`."""
    mean, axes = _principal_axes(train)
    return ((x.double() - mean) @ axes[:k].T).float()


def _principal_axes(train: Tensor) -> tuple[Tensor, Tensor]:
    rows = train.double()
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    return mean, torch.linalg.eigh(covariance).eigenvectors.T.flip(0)
