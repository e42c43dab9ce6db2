"""The model card of a published autoencoder: how to load it, what it measures, how it was made."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import saekit
from saekit.files import to_tagged

if TYPE_CHECKING:
    from saekit.autoencoders import SparseAutoencoder
    from saekit.autoencoders.transcoder import Transcoder


def model_card(
    sae: "SparseAutoencoder | Transcoder",
    *,
    repo_id: str,
    format: str,
    subfolder: str | None = None,
    notes: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Markdown with the hub's header. What is not known is said to be not known, never left to be guessed."""
    config, provenance = sae.config, sae.provenance or {}
    backbone = provenance.get("backbone") or {}
    model = backbone.get("spec") or (provenance.get("source") or {}).get("model_name")
    width = f"{config.d_in} -> {config.d_sae}" + (f" -> {config.d_out}" if hasattr(config, "d_out") else "")
    kind = type(sae).__name__
    seen = getattr(sae, "n_tokens_seen", None)
    n_tokens = 0 if seen is None else int(seen)
    load = f'load_sae("{repo_id}"' + (f', subfolder="{subfolder}")' if subfolder else ")")
    facts = {
        "Autoencoder": f"{kind} {width}, {type(config.sparsity).__name__}",
        "Model": model,
        "Hook point": provenance.get("hook_point") or (provenance.get("source") or {}).get("hook_name"),
        "Training tokens": f"{n_tokens:,}" if n_tokens else None,
        "Files": format,
    }
    lines = [
        *_header(model, license),
        f"# {repo_id.split('/')[-1]}" + (f", {subfolder}" if subfolder else ""),
        "",
        "A sparse autoencoder: a dictionary of directions in which a model's activations are sparse.",
        "",
        *_table(("", ""), [(name, "not recorded" if value is None else value) for name, value in facts.items()]),
        "",
        "```python",
        "import saekit as sk",
        "",
        f"sae = sk.{load}",
        "latents = sae.encode(activations)  # raw activations: normalisation is inside",
        "```",
        "",
        "## Metrics",
        "",
        *_metrics(metrics),
        "",
        "## Recipe",
        "",
        *_json("The autoencoder", to_tagged(config)),
        *(_json("Training", dict(recipe)) if recipe else ["How it was trained is not recorded here.", ""]),
        *_json("Where the activations came from", provenance or "not recorded"),
    ]
    if notes:
        lines += ["## In this format", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _header(model: str | None, license: str | None) -> list[str]:
    fields: list[str] = ["---", "library_name: saekit"]
    if license:
        fields.append(f"license: {license}")
    if model and "/" in model and not model.startswith(("/", ".")) and ":" not in model:
        fields.append(f"base_model: {json.dumps(model)}")
    return [*fields, "tags:", "- sparse-autoencoder", "- interpretability", "---", ""]


def _metrics(metrics: Mapping[str, Any] | None) -> list[str]:
    numbers = _numbers((metrics or {}).get("headline") or metrics or {})
    if not numbers:
        return ["Not measured."]
    data = (metrics or {}).get("data") or {}
    lines = _table(("metric", "value"), [(name, f"{value:.6g}") for name, value in numbers.items()])
    if data.get("n_tokens"):
        seen = "held out of training" if data.get("held_out_share") else "not held out of training"
        lines += ["", f"On {data['n_tokens']:,} tokens of {data.get('n_documents', 0):,} documents, {seen}."]
    return [*lines, "", f"Definitions: the documentation of saekit {saekit.__version__}, metrics.json."]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "schema"
    }


def _table(head: tuple[str, str], rows: Sequence[tuple[str, Any]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _json(title: str, value: Any) -> list[str]:
    return [f"{title}:", "", "```json", json.dumps(value, indent=2, default=str, ensure_ascii=False), "```", ""]
