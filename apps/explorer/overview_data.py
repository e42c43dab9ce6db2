"""What the Overview page shows: the run, its metrics, the dictionary's health and where to start. Pure, NumPy only."""

import base64
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from saekit.errors import FeatureIndexError
from saekit.files import read_json
from saekit.index import FeatureIndex
from saekit_explorer.browse import entropy_column, promise
from saekit_explorer.widgets import (
    DENSE,
    DUPLICATE_COSINE,
    VERY_DENSE,
    Json,
    described,
    one_in,
    shown_number,
    shown_percent,
    top_string,
)

N_STARTERS = 10
METRICS = {
    "fvu": ("FVU", "fraction of variance unexplained: 0 is perfect, 1 is no better than the mean"),
    "ce_recovered_zero": ("CE recovered", "cross-entropy that reconstructions recover, against zero ablation"),
    "ce_recovered_mean": ("CE recovered (mean)", "cross-entropy that reconstructions recover, against mean ablation"),
    "knn_accuracy": ("kNN accuracy", "nearest-neighbour accuracy on reconstructed representations"),
    "representation_recovered_mean": ("Recovered (mean)", "share of the model's output that reconstructions recover"),
}
"""Numbers of `saekit eval` that the page shows: key -> name, explanation."""


def overview(index: FeatureIndex) -> Json:
    """Everything on the Overview page."""
    return {
        "title": title(index),
        "subtitle": subtitle(index),
        "facts": facts(index),
        "starters": [
            {**described(index, feature), "note": _fires(index, feature)} for feature in starters(index).tolist()
        ],
        "density": density_histogram(index),
        "scatter": scatter(index),
        "health": health(index),
        "provenance": provenance(index),
    }


def title(index: FeatureIndex) -> str:
    """The backbone and the hook point."""
    spec = (index.meta.get("backbone") or {}).get("spec") or index.path.resolve().name
    # A spec may be a long path: its end says what it is.
    return f"{str(spec).rstrip('/').split('/')[-1]} · {index.meta.get('hook_point', 'unnamed hook point')}"


def subtitle(index: FeatureIndex) -> str:
    """One sentence: what was indexed."""
    unit, source = ("tokens", "windows of text") if index.kind == "text" else ("patches", "images")
    return (
        f"A dictionary of {index.d_sae:,} features and what each fires on, "
        f"over {index.n_rows:,} {unit} of {index.n_examples:,} {source}."
    )


def facts(index: FeatureIndex) -> list[tuple[str, str, str]]:
    """The numbers that matter: name, value, explanation. Metrics that nobody measured are left out."""
    dead = float(np.mean(np.asarray(index.stats["is_dead"], dtype=bool)))
    rows = [
        ("Features", f"{index.d_sae:,}", "width of the dictionary"),
        ("L0", shown_number(index.n_codes / max(index.n_rows, 1)), "features active per row, on average"),
        ("Dead", shown_percent(dead), "share of features that never fire on this data"),
    ]
    measured = headline(index)
    for key, (name, note) in METRICS.items():
        value = measured.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value):
            rows.append((name, shown_number(value) if key == "fvu" else shown_percent(value), note))
    return rows


def headline(index: FeatureIndex) -> Json:
    """The headline of the `metrics.json` that `saekit eval` wrote beside the index or the checkpoint; else empty."""
    checkpoint = (index.meta.get("checkpoint") or {}).get("path")
    folders = [index.path, *((Path(checkpoint), Path(checkpoint).parent) if checkpoint else ())]
    for folder in folders:
        try:
            found = read_json(folder / "metrics.json", FeatureIndexError)
        except (FeatureIndexError, OSError):
            continue
        if isinstance(found, dict) and isinstance(found.get("headline"), dict):
            return found["headline"]
    return {}


def starters(index: FeatureIndex, n: int = N_STARTERS) -> np.ndarray:
    """Features to begin with: some that people labelled, then the most promising, one for each top token or class."""
    score = promise(index)
    chosen = [feature for feature, note in index.annotations.all().items() if note.label][: n // 2]
    seen = {top_string(index, feature).strip().casefold() for feature in chosen}
    for feature in np.argsort(-score, kind="stable").tolist():
        if len(chosen) >= n or score[feature] == -np.inf:
            break
        theme = top_string(index, feature).strip().casefold()
        if theme in seen or feature in chosen:
            continue
        seen.add(theme)
        chosen.append(feature)
    return np.array(chosen, dtype=np.int64)


def density_histogram(index: FeatureIndex) -> Json | None:
    """Histogram of log10 density over live features."""
    density = np.asarray(index.stats["density"], dtype=np.float64)
    logs = np.log10(density[density > 0])
    if not len(logs):
        return None
    low, high = math.floor(float(logs.min())), max(math.ceil(float(logs.max())), math.floor(float(logs.min())) + 1)
    counts, edges = np.histogram(logs, bins=min(60, 12 * (high - low)), range=(low, high))
    median = float(10 ** np.median(logs))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "log10": True,
        "ticks": [],
        "xlabel": "density: share of rows on which a feature fires (both axes log)",
        "alt": f"Histogram of the densities of {len(logs):,} live features, from "
        f"{shown_percent(float(10 ** logs.min()))} to {shown_percent(float(10 ** logs.max()))}; "
        f"the median is {shown_percent(median)}.",
    }


def scatter(index: FeatureIndex) -> Json:
    """Density against entropy (or highest activation) for every live feature, quantised to 16 bits an axis."""
    stats = index.stats
    density = np.asarray(stats["density"], dtype=np.float64)
    key = entropy_column(index)
    column = np.asarray(stats[key or "max"], dtype=np.float64)
    ids = np.flatnonzero((density > 0) & np.isfinite(column))
    name = {"token_entropy": "token entropy (bits)", "label_entropy": "class entropy (bits)"}.get(
        key or "", "highest activation"
    )
    title = f"Density and {name.split(' (')[0]}"
    if not len(ids):
        return {"n": 0, "title": title}
    x, y = np.log10(density[ids]), column[ids]
    x_range, y_range = (math.floor(x.min()), max(0, math.ceil(x.max()))), (0.0, float(y.max()) or 1.0)
    return {
        "n": len(ids),
        "title": title,
        "ids": base64.b64encode(ids.astype("<u4").tobytes()).decode(),
        "x": _quantised(x, *x_range),
        "y": _quantised(y, *y_range),
        "x_range": x_range,
        "y_range": y_range,
        "x_name": "density (log)",
        "y_name": name,
        "x_ticks": [
            ((p - x_range[0]) / (x_range[1] - x_range[0]), shown_percent(10.0**p))
            for p in range(x_range[0], x_range[1] + 1)
        ],
        "y_ticks": [(tick / y_range[1], shown_number(tick)) for tick in _ticks(y_range[1])],
        "alt": f"Scatter of {len(ids):,} live features: {name} against density. "
        "The Features page lists the same numbers.",
    }


def health(index: FeatureIndex) -> list[tuple[str, str, str, str | None]]:
    """What can be wrong with a dictionary: name, value, explanation, link to the features concerned."""
    stats = index.stats
    density = np.asarray(stats["density"], dtype=np.float64)
    cosine = np.asarray(stats["nearest_cosine"], dtype=np.float64)
    nearest = np.asarray(stats["nearest_feature"])
    dead = int(np.sum(density == 0))
    ids = np.flatnonzero(cosine > DUPLICATE_COSINE)
    pairs = {(min(a, b), max(a, b)) for a, b in zip(ids.tolist(), nearest[ids].tolist(), strict=True)}
    n = index.d_sae
    rows: list[tuple[str, str, str, str | None]] = [
        (
            "Dead",
            f"{dead:,}",
            f"{dead / n:.1%} never fire on this data",
            "features?sort=density&ascending=true&alive=false",
        ),
        (
            f"Dense, above {DENSE:.0%}",
            f"{int(np.sum(density > DENSE)):,}",
            "fire on many rows; often hard to name",
            "features?density=1%25&density=100%25",
        ),
        (
            f"Dense, above {VERY_DENSE:.0%}",
            f"{int(np.sum(density > VERY_DENSE)):,}",
            "fire nearly everywhere",
            "features?density=10%25&density=100%25",
        ),
        (
            "Near-duplicate pairs",
            f"{len(pairs):,}",
            f"decoder cosine above {DUPLICATE_COSINE}",
            "features?sort=nearest",
        ),
    ]
    rare = int(np.sum((density > 0) & (density * index.n_rows < 10)))
    rows.append(("Rare", f"{rare:,}", "fire on fewer than 10 rows", "features?sort=density&ascending=true"))
    norms = (index.meta.get("store") or {}).get("n_high_norm_rows")
    if isinstance(norms, int):
        rows.append(("High-norm rows", f"{norms:,}", "far longer than the rest: attention sinks", None))
    return rows


def provenance(index: FeatureIndex) -> list[tuple[str, str, str]]:
    """Where the index comes from: name, value, explanation."""
    meta = index.meta
    rows = [("Index", str(Path(index.path).resolve()), "path on the server")]
    backbone, store, checkpoint = (meta.get(key) or {} for key in ("backbone", "store", "checkpoint"))
    config = checkpoint.get("config") or {}
    sparsity = config.get("sparsity") or {}
    settings = ", ".join(f"{key}={value}" for key, value in sparsity.items() if key != "kind")
    named = (
        ("Backbone", backbone.get("spec"), "what the activations come from"),
        ("Hook point", meta.get("hook_point"), "where in the backbone"),
        ("Autoencoder", checkpoint.get("class"), "class of the checkpoint"),
        ("Sparsity", sparsity.get("kind") and f"{sparsity['kind']}({settings})", "what makes its latents sparse"),
        ("Checkpoint", checkpoint.get("path"), "where it was read from"),
        ("Checkpoint hash", checkpoint.get("weights_hash"), "hash of its weights"),
        ("Store", store.get("path"), "activations that were indexed"),
        ("Store hash", store.get("content_hash"), "hash of the store"),
        ("Index hash", meta.get("content_hash"), "hash of this index"),
        ("saekit", meta.get("saekit"), "version that wrote the index"),
    )
    rows += [(name, str(value), note) for name, value, note in named if value]
    return rows


def _fires(index: FeatureIndex, feature: int) -> str:
    return one_in(float(index.stats["density"][feature]))


def _ticks(high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to at most `high`: three to six of them."""
    power = 10.0 ** math.floor(math.log10(high))
    step = next(factor * power for factor in (0.2, 0.5, 1, 2, 5) if high / (factor * power) < 6)
    return [step * i for i in range(int(high / step + 1e-9) + 1)]


def _quantised(x: Float[np.ndarray, " n"], low: float, high: float) -> str:
    scaled = np.round(65535 * np.clip((x - low) / (high - low), 0, 1)).astype("<u2")
    return base64.b64encode(scaled.tobytes()).decode()
