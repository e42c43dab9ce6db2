"""Sweeps: the configs of several autoencoders that differ in a few settings, and the picture of what came of them.

`fit` trains them all on one pass over the activations.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saekit.autoencoders import SparseAutoencoderConfig
from saekit.errors import ConfigError, closest, require
from saekit.files import Json, atomic_write

# Settings of the autoencoder itself; everything else is a field of its sparsity.
OWN_AXES = ("d_sae", "expansion", "seed")


def parse_axes(words: Sequence[str]) -> dict[str, tuple[float | int, ...]]:
    """Axes of a sweep from words such as `k=16,32,64` and `seed=0,1`; whole numbers stay whole.

    Raises `ConfigError` that names the word.
    """
    axes: dict[str, tuple[float | int, ...]] = {}
    for word in words:
        name, _, values = word.partition("=")
        try:
            found = tuple(_number(value) for value in values.split(","))
        except ValueError:
            raise ConfigError(f"sweep={word!r} is not NAME=NUMBER,NUMBER,... Example: --sweep k=16,32,64") from None
        name = name.strip().replace("-", "_")
        if name in axes:
            raise ConfigError(f"sweep names {name!r} twice; give all its values in one word: {name}=1,2,3")
        if len(set(found)) < len(found):
            raise ConfigError(f"sweep={word!r} holds a value twice, which would train the same autoencoder twice.")
        axes[name] = found
    return axes


def sweep_configs(
    base: SparseAutoencoderConfig, axes: Mapping[str, Sequence[float | int]]
) -> list[tuple[Json, SparseAutoencoderConfig]]:
    """(the point's settings, its config) for every combination of the axes, the last axis fastest.

    An axis is `d_sae`, `expansion` (d_sae as a multiple of d_in), `seed`, or a number among the fields of the base's
    sparsity (`k`, `l1`, `rho`, ...). Raises `ConfigError` for any other.
    """
    sparsity = base.sparsity
    fields = [
        field.name
        for field in dataclasses.fields(sparsity)
        if not isinstance(getattr(sparsity, field.name), (bool, str))
    ]
    known = (*OWN_AXES, *fields)
    for name in axes:
        if name not in known:
            raise ConfigError(
                f"A sweep over {name!r} is not possible: {type(sparsity).__name__} has {', '.join(fields)}, and every "
                f"autoencoder {', '.join(OWN_AXES)}. Closest: {closest(name, known)}"
            )
    if {"d_sae", "expansion"} <= set(axes):
        raise ConfigError("A sweep goes over d_sae or over expansion, not over both.")
    points = []
    for values in itertools.product(*axes.values()):
        point: Json = dict(zip(axes, values, strict=True))
        own = {name: value for name, value in point.items() if name in ("d_sae", "seed")}
        if "expansion" in point:
            own["d_sae"] = base.d_in * point["expansion"]
        for name, value in own.items():
            if value != int(value):
                raise ConfigError(f"A sweep over {name} takes whole numbers, got {value}.")
        changed: dict[str, Any] = {
            name: float(value) if isinstance(getattr(sparsity, name), float) else value
            for name, value in point.items()
            if name in fields
        }
        own = {name: int(value) for name, value in own.items()}
        points.append((point, dataclasses.replace(base, **own, sparsity=dataclasses.replace(sparsity, **changed))))
    return points


def write_pareto(path: str | Path, points: Sequence[Json], title: str) -> None:
    """Draw FVU over L0, a dot per point labelled with its settings, the best trade-offs joined. Needs matplotlib.

    Each point is `{"settings": {...}, "l0": ..., "fvu": ..., "dead": ...}`.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(7.5, 5.2), layout="constrained")
    axis = figure.subplots()
    drawn = [point for point in points if point["l0"] > 0 and point["fvu"] > 0]
    for point in drawn:
        axis.plot(point["l0"], point["fvu"], "o", color="#0072B2", markersize=6)
        axis.annotate(
            label_of(point["settings"]),
            (point["l0"], point["fvu"]),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=8,
        )
    front = pareto_front(drawn)
    axis.plot([p["l0"] for p in front], [p["fvu"] for p in front], color="#0072B2", linewidth=1.4, alpha=0.6)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("L0: active latents per token (fewer is sparser)", fontsize=9)
    axis.set_ylabel("Fraction of variance unexplained (less is better)", fontsize=9)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.margins(x=0.15, y=0.12)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png")


def pareto_front(points: Sequence[Json]) -> list[Json]:
    """The points that no other one beats in both l0 and fvu, by ascending l0."""
    front: list[Json] = []
    for point in sorted(points, key=lambda p: (p["l0"], p["fvu"])):
        if not front or point["fvu"] < front[-1]["fvu"]:
            front.append(point)
    return front


def label_of(settings: Mapping[str, Any]) -> str:
    """The settings of a point in one short line, `k 32, seed 1`."""
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def _number(text: str) -> float | int:
    value = float(text)
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(text)
    is_whole = "." not in text and "e" not in text.lower()
    return int(text) if is_whole else value
