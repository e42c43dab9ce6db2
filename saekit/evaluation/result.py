"""`Evaluation`: all numbers about one checkpoint, as `metrics.json` and as a table to read."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from saekit import __version__
from saekit.evaluation.intervals import Interval
from saekit.evaluation.latents import LatentUse
from saekit.evaluation.reconstruction import Reconstruction
from saekit.evaluation.summary import published_lines, usefulness_lines
from saekit.evaluation.usefulness import Usefulness

SCHEMA = 1
SAE = "sae"

Number = float | Interval | None


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of replacing the activations: the autoencoder, or a baseline beside it."""

    name: str
    """`"sae"`, `"identity"`, `"pca"`, `"pca, equal fvu"`, `"random dictionary"`, `"mean"` or `"zero"`."""
    k: float | int | None = None
    """Numbers kept per row: the autoencoder's L0, the rank of PCA; None where that has no meaning."""
    reconstruction: Reconstruction | None = None
    """How near it comes to the activations."""
    faithfulness: dict[str, Number] = field(default_factory=dict)
    """What splicing it in does to the backbone; empty without a backbone."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All numbers about one checkpoint. `table()` for people, `to_json()` for `metrics.json` (docs/formats.md)."""

    checkpoint: dict[str, Any]
    """What was measured: class, d_in, number of latents, sparsity, training tokens."""
    data: dict[str, Any]
    """On what: store hash, hook point, held-out share, tokens and documents."""
    latents: LatentUse
    """How the autoencoder's latents fire on the evaluated rows."""
    methods: tuple[Method, ...]
    """The autoencoder first, then the baselines."""
    faithfulness: dict[str, Any]
    """On what faithfulness was measured, with the clean model's own numbers; `{"skipped": why}` when it was not."""
    usefulness: Usefulness | None = None
    """Probes, monosemanticity, labels, geometry, description length, pairs; None when left out."""

    @property
    def sae(self) -> Method:
        return self.methods[0]

    def headline(self) -> dict[str, float | None]:
        """The few numbers that everybody asks for first; None for what was not measured."""
        assert self.sae.reconstruction is not None
        dead = self.latents.dead_share
        first: dict[str, float | None] = {
            "l0": self.latents.l0,
            "fvu": self.sae.reconstruction.fvu,
            "dead_share" if dead is not None else "silent_share": self.latents.silent_share if dead is None else dead,
        }
        for name in (
            "ce_recovered_zero",
            "ce_recovered_mean",
            "linear_probe_accuracy",
            "knn_accuracy",
            "representation_recovered_mean",
        ):
            value = self.sae.faithfulness.get(name)
            if isinstance(value, float):
                first[name] = value
        if self.usefulness is not None:
            score = self.usefulness.monosemanticity.get("latents")
            if score is not None:
                first["monosemanticity"] = score["mean"]
            for result in self.usefulness.probing.get("results", ()):
                if (result["features"], result["k"]) == ("latents", 1):
                    first["probe_accuracy_k1"] = result["accuracy"]
        return first

    def to_json(self) -> dict[str, Any]:
        """The content of `metrics.json`; a number that does not exist (0 / 0) is null."""
        latents = dataclasses.asdict(self.latents)
        del latents["density"]
        methods = [dataclasses.asdict(method) for method in self.methods]
        return _finite(
            {
                "kind": "Evaluation",
                "schema": SCHEMA,
                "saekit": __version__,
                "checkpoint": self.checkpoint,
                "data": self.data,
                "headline": self.headline(),
                "latents": latents,
                "faithfulness": self.faithfulness,
                "methods": methods,
                "usefulness": None if self.usefulness is None else self.usefulness.to_json(),
            }
        )

    def table(self) -> str:
        """The same, for a terminal."""
        data, latents = self.data, self.latents
        seen = "held out of training" if data["held_out_share"] else "NOT held out: training saw these documents"
        lines = [
            f"{self.checkpoint['class']} {self.checkpoint['d_in']} -> {latents.n_latents} at {data['hook_point']}, on "
            f"{data['n_tokens']:,} tokens of {data['n_documents']:,} documents ({seen})",
            f"L0 {latents.l0:.1f}   L1 {latents.l1:.4g}   dead {_share(latents.dead_share)}   "
            f"silent here {_share(latents.silent_share)}   dense (>10 %) {_share(latents.dense_share)}",
            "",
        ]
        if "skipped" in self.faithfulness:
            names: list[str] = []
            lines.append(f"Faithfulness not measured: {self.faithfulness['skipped']}")
        else:
            names = [name for name in _COLUMNS if any(name in method.faithfulness for method in self.methods)]
            facts = [
                f"{key.replace('_', ' ')} {value:.4f}" if isinstance(value, float) else f"{value:,} {key[2:]}"
                for key, value in self.faithfulness.items()
                if key.startswith("n_") or isinstance(value, float)
            ]
            lines.append(f"Faithfulness ({self.faithfulness['kind'].replace('_', ' ')}): {', '.join(facts)}")
        header = ["method", "k", "FVU", "95 %", "cosine", "bias", *(_COLUMNS[name] for name in names)]
        rows = [header, *(_cells(method, names) for method in self.methods)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines += [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        assert self.sae.reconstruction is not None
        lines += ["", *published_lines(self.sae.reconstruction.published)]
        if self.usefulness is not None:
            lines += usefulness_lines(self.usefulness.to_json())
        return "\n".join(lines)


_COLUMNS = {
    "cross_entropy": "CE",
    "kl": "KL",
    "ce_recovered_zero": "CE recovered (zero)",
    "ce_recovered_zero_interval": "95 %",
    "ce_recovered_mean": "(mean)",
    "ce_recovered_mean_interval": "95 %",
    "linear_probe_accuracy": "probe accuracy",
    "linear_probe_accuracy_interval": "95 %",
    "knn_accuracy": "kNN accuracy",
    "representation_recovered_zero": "representation recovered (zero)",
    "representation_recovered_mean": "(mean)",
    "class_agreement": "class agreement",
}


def _cells(method: Method, names: list[str]) -> list[str]:
    reconstruction = method.reconstruction
    shown: list[Number] = (
        [None] * 4
        if reconstruction is None
        else [
            reconstruction.fvu,
            reconstruction.fvu_interval,
            reconstruction.cosine,
            reconstruction.reconstruction_bias_centred,
        ]
    )
    k = "" if method.k is None else f"{method.k:.4g}"
    return [method.name, k, *map(_number, [*shown, *(method.faithfulness.get(name) for name in names)])]


def _number(value: Number) -> str:
    if isinstance(value, tuple):
        return f"{_number(value[0])}..{_number(value[1])}"
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
