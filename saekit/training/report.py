"""The picture of a run: loss, FVU, L0 and dead share over tokens, and how often latents fire at its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from saekit.errors import require
from saekit.files import atomic_write

# Okabe and Ito's colours: told apart by colour-blind readers as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# (key in metrics.jsonl, title, log scale)
CURVES = (
    ("loss", "Loss (normalised inputs)", True),
    ("fvu", "Fraction of variance unexplained", True),
    ("l0", "L0: active latents per token", False),
    ("dead", "Dead latents (share)", False),
)


def write_report(
    path: str | Path,
    records: Sequence[dict[str, Any]],
    densities: Sequence[Float[Tensor, "_"] | None],
) -> None:
    """Draw `records` (lines of metrics.jsonl) and the latents' densities to a PNG. Needs matplotlib (extra `train`)."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(12, 6.5), layout="constrained")
    in_thousands = require("matplotlib.ticker", "train").EngFormatter(sep="")
    axes = figure.subplots(2, 3)
    models = sorted({record["model"] for record in records})
    for axis, (key, title, is_log) in zip(axes.flat, CURVES, strict=False):
        for model in models:
            points = [(r["tokens"], r[key]) for r in records if r["model"] == model and r.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), color=_colour(model), label=f"model {model}", linewidth=1.6)
        _dress(axis, title, "tokens")
        axis.xaxis.set_major_formatter(in_thousands)
        if is_log and axis.lines and all(min(line.get_ydata()) > 0 for line in axis.lines):
            axis.set_yscale("log")
        elif axis.lines:
            axis.set_ylim(bottom=0)
    _draw_densities(axes[1, 1], densities)
    _draw_summary(axes[1, 2], records, models)
    if len(models) > 1:
        axes[0, 0].legend(frameon=False, fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png")


def _draw_densities(axis: Any, densities: Sequence[Tensor | None]) -> None:
    for model, density in enumerate(densities):
        if density is None:
            continue
        values = density.cpu().numpy()
        fired = values[values > 0]
        edges = np.linspace(np.floor(np.log10(fired.min())), 0, 41) if len(fired) else np.linspace(-6, 0, 41)
        label = f"{np.mean(values == 0):.1%} never fired"
        axis.hist(np.log10(fired), bins=edges, histtype="stepfilled", alpha=0.5, color=_colour(model), label=label)
    _dress(axis, "Latents by density, last tenth of the run", "log10 share of tokens")
    if axis.patches:
        # Room for the legend above the tallest bar.
        axis.set_ylim(top=axis.get_ylim()[1] * (1.15 + 0.08 * len(densities)))
        axis.legend(frameon=False, fontsize=8, loc="upper right")


def _draw_summary(axis: Any, records: Sequence[dict[str, Any]], models: Sequence[int]) -> None:
    axis.axis("off")
    lines = ["Last log interval", ""]
    for model in models[:6]:
        last = [record for record in records if record["model"] == model][-1]
        shown = {
            "tokens": f"{last['tokens']:,}",
            "seconds": f"{last['seconds']:,.0f}",
            "loss": _number(last.get("loss"), ".4g"),
            "FVU": _number(last.get("fvu"), ".4f"),
            "L0": _number(last.get("l0"), ".1f"),
            "dead": _number(last.get("dead"), ".1%"),
        }
        if len(models) > 1:
            lines.append(f"model {model}   " + "  ".join(f"{k} {shown[k]}" for k in ("FVU", "L0", "dead")))
        else:
            lines += [f"{name:<8} {value}" for name, value in shown.items()]
    axis.text(0.05, 0.95, "\n".join(lines), transform=axis.transAxes, va="top", family="monospace", fontsize=10)


def _dress(axis: Any, title: str, x_label: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(x_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _number(value: float | None, digits: str) -> str:
    return "n/a" if value is None else format(value, digits)


def _colour(model: int) -> str:
    return COLOURS[model % len(COLOURS)]
