"""`evaluation.png` and `evaluation.html`: an evaluation as a picture and as one page that needs no other file."""

import base64
import html
import io
from pathlib import Path
from typing import Any

from saekit.errors import require
from saekit.evaluation.summary import published_lines, shown_number, usefulness_lines
from saekit.files import atomic_write

# Okabe and Ito's colours: told apart by colour-blind readers as well.
BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8a8a8a"

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("reconstruction", "fvu", "FVU"),
    ("reconstruction", "mse", "MSE"),
    ("reconstruction", "cosine", "Cosine"),
    ("reconstruction", "reconstruction_bias", "Bias"),
    ("faithfulness", "cross_entropy", "Cross-entropy"),
    ("faithfulness", "kl", "KL"),
    ("faithfulness", "ce_recovered_zero", "CE recovered (zero)"),
    ("faithfulness", "ce_recovered_mean", "CE recovered (mean)"),
    ("faithfulness", "kl_recovered_mean", "KL recovered (mean)"),
    ("faithfulness", "linear_probe_accuracy", "Probe accuracy"),
    ("faithfulness", "knn_accuracy", "kNN accuracy"),
    ("faithfulness", "representation_recovered_mean", "Representation recovered (mean)"),
    ("faithfulness", "class_agreement", "Class agreement"),
)

_HEADLINES = {
    "l0": "L0",
    "fvu": "FVU",
    "dead_share": "Dead",
    "silent_share": "Silent here",
    "ce_recovered_zero": "CE recovered (zero)",
    "ce_recovered_mean": "CE recovered (mean)",
    "linear_probe_accuracy": "Probe accuracy",
    "knn_accuracy": "kNN accuracy",
    "representation_recovered_mean": "Representation recovered",
    "monosemanticity": "Monosemanticity",
    "probe_accuracy_k1": "Probing, k=1",
}

_STYLE = """
:root { color-scheme: light dark; --line: #d9dde2; --muted: #5b6570; --back: #fff; --text: #1b1f24; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --line: #363d46; --muted: #a3adb8; --back: #14181d; --text: #e8ebee;
  --accent: #6cb8e6; } img { filter: invert(0.9) hue-rotate(180deg); } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 76rem;
  margin: 2.5rem auto; padding: 0 1.5rem; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 0.6rem; }
p.muted, dt, th, .interval { color: var(--muted); }
dl { display: flex; flex-wrap: wrap; gap: 0.6rem 2.6rem; border: solid var(--line); border-width: 1px 0;
  padding: 0.8rem 0; }
dt { font-size: 0.8rem; } dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th { text-align: right; font-weight: 600; font-size: 0.8rem; } th:first-child, td:first-child { text-align: left; }
td { text-align: right; white-space: nowrap; }
th, td { padding: 0.35rem 0.9rem 0.35rem 0; border-bottom: 1px solid var(--line); }
tr.sae td { font-weight: 600; } .interval { display: block; font-size: 0.78rem; font-weight: 400; }
img { max-width: 100%; height: auto; } pre { white-space: pre-wrap; font-size: 0.85rem; }
"""


def write_report(out: Path, metrics: dict[str, Any]) -> None:
    """Write both files into `out` from the content of `metrics.json`. Needs matplotlib (extra `train`)."""
    picture = draw(metrics)
    with atomic_write(out / "evaluation.png") as file:
        file.write(picture)
    with atomic_write(out / "evaluation.html", "w") as page:
        page.write(page_of(metrics, picture))


def page_of(metrics: dict[str, Any], picture: bytes) -> str:
    """The page, with the picture inside it."""
    checkpoint, data = metrics["checkpoint"], metrics["data"]
    title = f"{checkpoint['class']} {checkpoint['d_in']} → {metrics['latents']['n_latents']} at {data['hook_point']}"
    seen = "held out of training" if data["held_out_share"] else "not held out: training saw these documents"
    facts = "".join(
        f"<div><dt>{html.escape(_HEADLINES.get(name, name))}</dt><dd>{value:.4g}</dd></div>"
        for name, value in metrics["headline"].items()
        if value is not None
    )
    published = published_lines(metrics["methods"][0]["reconstruction"]["published"])
    useful = usefulness_lines(metrics["usefulness"]) if metrics.get("usefulness") else []
    missing = metrics["faithfulness"].get("skipped")
    note = f"<p>Faithfulness was not measured: {html.escape(missing)}.</p>" if missing else ""
    encoded = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="muted">{data["n_tokens"]:,} tokens of {data["n_documents"]:,} documents, {seen}.
saekit {html.escape(metrics["saekit"])}.</p>
<dl>{facts}</dl>
<h2>Beside baselines</h2>{note}
<div class="scroll">{_table(metrics["methods"])}</div>
<p class="muted">Below a number: its 95 % bootstrap interval over documents or images. FVU is about the mean of the
measured rows; recovered shares are 1 for the clean model and 0 for the ablation named.</p>
<h2>Pictures</h2><img alt="Density of latents, error and loss of each method, probing accuracy, description length"
src="data:image/png;base64,{encoded}">
<h2>More numbers</h2><pre>{html.escape(chr(10).join([*useful, *published]))}</pre>
</body></html>
"""


def draw(metrics: dict[str, Any]) -> bytes:
    """The picture: densities, methods, probing, bits."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    _densities(axes[0, 0], metrics["latents"])
    _methods(axes[0, 1], metrics["methods"])
    useful = metrics.get("usefulness") or {}
    _probing(axes[1, 0], (useful.get("probing") or {}).get("results") or [])
    _bits(axes[1, 1], useful.get("description_length") or [])
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return file.getvalue()


def _table(methods: list[dict[str, Any]]) -> str:
    columns = [each for each in _COLUMNS if any(method[each[0]].get(each[1]) is not None for method in methods)]
    head = "".join(f"<th scope=col>{html.escape(title)}</th>" for title in ("Method", "k", *(c[2] for c in columns)))
    rows = []
    for method in methods:
        k = "" if method["k"] is None else f"{method['k']:.4g}"
        cells = [f"<td>{html.escape(method['name'])}</td><td>{k}</td>"]
        for part, key, _ in columns:
            interval = method[part].get(f"{key}_interval")
            shown = f"{shown_number(interval[0])} – {shown_number(interval[1])}" if interval else ""
            cells.append(
                f"<td>{shown_number(method[part].get(key))}"
                + (f"<span class=interval>{shown}</span>" if shown else "")
                + "</td>"
            )
        rows.append(f"<tr class={html.escape(method['name'].split()[0].strip(','))}>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _densities(axis: Any, latents: dict[str, Any]) -> None:
    histogram = latents["density_histogram"]
    edges = histogram["log10_edges"]
    axis.bar(edges[:-1], histogram["counts"], width=edges[1] - edges[0], align="edge", color=BLUE, alpha=0.75)
    silent = latents["silent_share"]
    _dress(axis, f"Latents by density; {silent:.1%} never fired here", "log10 share of tokens")
    first = next((edge for edge, n in zip(edges, histogram["counts"], strict=False) if n), -6)
    axis.set_xlim(first - 0.2, 0.05)


def _methods(axis: Any, methods: list[dict[str, Any]]) -> None:
    for i, method in enumerate(reversed(methods)):
        found = method["reconstruction"]
        explained = found["explained_variance"]
        value = max(-0.25, explained if explained is not None else 0.0)
        axis.barh(i + 0.18, value, height=0.32, color=BLUE, label="explained variance" if i == 0 else None)
        other = method["faithfulness"].get(
            "ce_recovered_mean", method["faithfulness"].get("representation_recovered_mean")
        )
        if other is not None:
            axis.barh(i - 0.18, max(-0.25, other), height=0.32, color=RED, label="recovered (mean)" if i == 0 else None)
    axis.set_yticks(range(len(methods)), [method["name"] for method in reversed(methods)])
    axis.axvline(0, color=GREY, linewidth=0.8)
    _dress(axis, "Kept of the variance and of the model's output", "share; bars end at -0.25")
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def _probing(axis: Any, results: list[dict[str, Any]]) -> None:
    _dress(axis, "Probes on k features (balanced accuracy)", "k")
    if not results:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
        return
    for name, colour in (("latents", BLUE), ("raw", RED)):
        points = [each for each in results if each["features"] == name and each["k"] is not None]
        ks, values = [each["k"] for each in points], [each["accuracy"] for each in points]
        bounds = [each["accuracy_interval"] or (each["accuracy"],) * 2 for each in points]
        axis.fill_between(ks, [b[0] for b in bounds], [b[1] for b in bounds], color=colour, alpha=0.15, linewidth=0)
        axis.plot(ks, values, "o-", color=colour, label=name)
    whole = next((each for each in results if each["k"] is None), None)
    if whole:
        axis.axhline(whole["accuracy"], color=GREY, linestyle="--", label="raw, all dimensions")
    axis.set_xscale("log")
    ks = sorted({each["k"] for each in results if each["k"] is not None})
    axis.set_xticks(ks, [str(k) for k in ks], minor=False)
    axis.set_xticks([], minor=True)
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def _bits(axis: Any, lengths: list[dict[str, Any]]) -> None:
    _dress(axis, "Bits per token and the error they buy", "bits per token")
    axis.set_ylabel("FVU", fontsize=9)
    for name, colour in (("sae", BLUE), ("pca", GREEN), ("raw", RED)):
        points = [(each["bits"], each["fvu"]) for each in lengths if each["code"] == name and each["fvu"]]
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    if axis.lines:
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.legend(frameon=False, fontsize=8)


def _dress(axis: Any, title: str, x_label: str) -> None:
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(x_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
