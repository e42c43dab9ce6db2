"""The numbers beside the table of methods, as lines for a terminal, from what `metrics.json` holds."""

import math
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


def published_lines(published: Mapping[str, float]) -> list[str]:
    """Other toolkits' formulas, for comparison with their tables only."""
    names = {
        "sae_lens_legacy_explained_variance": "SAELens legacy EV",
        "saebench_explained_variance": "SAEBench EV",
        "saebench_mse": "SAEBench MSE",
    }
    shown = "   ".join(f"{names.get(name, name)} {shown_number(value)}" for name, value in published.items())
    return [f"As published elsewhere, to compare with their tables: {shown}"]


def usefulness_lines(found: Json) -> list[str]:
    """Probes, monosemanticity, labels, geometry, bits and pairs, a line or a few for each."""
    lines = _probing(found["probing"]) if found["probing"] else []
    score = found["monosemanticity"]
    if "skipped" in score:
        lines.append(f"Monosemanticity not measured: {score['skipped']}")
    elif score:
        lines.append(
            f"Monosemanticity (by {score['embedding']}, {score['n_examples']:,} examples): latents "
            f"{_spread(score['latents'])}; raw dimensions {_spread(score['raw'])}; all pairs "
            f"{shown_number(score['all_pairs'])}"
        )
    labels = found["labels"]
    if labels and "skipped" not in labels:
        lines.append(
            f"Labels ({labels['n_labels']} on {labels['n_documents']:,} documents): entropy "
            f"{_spread(labels['entropy'])} bits; lift of the top label {_spread(labels['lift'])}, above 3: "
            f"{_share(labels['high_lift_share'])}"
        )
    weights = found["dictionary"]
    if weights and "skipped" not in weights:
        lines.append(
            f"Decoder: effective rank {shown_number(weights['effective_rank'])}; nearest cosine "
            f"{_spread(weights['nearest_cosine'])}, above 0.95: {_share(weights['near_duplicate_share'])}; "
            f"encoder-decoder cosine {_spread(weights['encoder_decoder_cosine'])}"
        )
    if found["description_length"]:
        codes: dict[str, list[str]] = {}
        for each in found["description_length"]:
            codes.setdefault(each["code"], []).append(f"{each['bits']:.0f} at FVU {shown_number(each['fvu'])}")
        lines.append("Bits per token: " + "; ".join(f"{code} {', '.join(items)}" for code, items in codes.items()))
    pairs = found["pairs"]
    if pairs:
        lines.append(
            f"Pairs among {pairs['n_features']:,} features: {pairs['n_splitting']:,} of splitting, "
            f"{pairs['n_absorption']:,} of possible absorption"
        )
        for name in ("splitting", "absorption"):
            lines += [
                f"  {name}: {each['f']} and {each['g']}   P(g|f) {each['p_g_given_f']:.2f}   P(f|g) "
                f"{each['p_f_given_g']:.2f}   cosine {each['cosine']:.2f}"
                for each in pairs[name][:3]
            ]
    return lines


def _probing(probing: Json) -> list[str]:
    if "skipped" in probing:
        return [f"Probing not measured: {probing['skipped']}"]
    lines = [
        f"Probing {len(probing['classes'])} classes, fitted on {probing['n_fit']:,} documents, judged on "
        f"{probing['n_test']:,} held out (balanced accuracy, chance 0.5):"
    ]
    for features in ("latents", "raw"):
        parts = []
        for each in probing["results"]:
            if each["features"] == features:
                k = "all" if each["k"] is None else f"k={each['k']}"
                interval = each["accuracy_interval"]
                parts.append(
                    f"{k} {each['accuracy']:.3f}" + (f" ({interval[0]:.2f}..{interval[1]:.2f})" if interval else "")
                )
        lines.append(f"  {features:<8} {'   '.join(parts)}")
    return lines


def shown_number(value: float | None) -> str:
    """Four decimals, or four digits for large ones; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def _spread(values: Json) -> str:
    if not values["n"]:
        return "-"
    return f"{values['q50']:.3g} ({values['q10']:.3g}..{values['q90']:.3g})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
