"""What the Run page shows: how training went, from the files that `saekit train` left beside the checkpoint."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saekit.errors import FeatureIndexError
from saekit.files import Json, read_json
from saekit.index import FeatureIndex

MAX_POINTS = 400
"""Points of a curve; a longer log is thinned evenly, its last line kept."""
# (key of metrics.jsonl, title, what it means, log scale where all values are positive)
CURVES: tuple[tuple[str, str, str, bool], ...] = (
    ("fvu", "FVU", "fraction of variance unexplained, of each batch before it was learnt from", True),
    ("l0", "L0", "latents active per token", False),
    ("loss", "Loss", "what training minimises, in normalised inputs", True),
    ("dead", "Dead latents", "share silent for as long as the run's dead_after_tokens", False),
    ("lr", "Learning rate", "of the optimizer's step", False),
    ("tokens_per_s", "Tokens per second", "in training, of each log interval", False),
)


def run_folder(index: FeatureIndex) -> Path | None:
    """The folder of the run that made the index's checkpoint, when its log is still there."""
    checkpoint = (index.meta.get("checkpoint") or {}).get("path")
    if not checkpoint:
        return None
    folder = Path(checkpoint).parent
    return folder if (folder / "metrics.jsonl").is_file() and (folder / "config.json").is_file() else None


def run_page(index: FeatureIndex) -> Json:
    """Everything the page shows: facts, curves, settings. Without a log, why there is none."""
    folder = run_folder(index)
    checkpoint = (index.meta.get("checkpoint") or {}).get("path")
    if folder is None or checkpoint is None:
        where = f"beside {checkpoint}" if checkpoint else "because the index was built without a checkpoint on disk"
        return {
            "missing": f"There is no training log {where}. The checkpoint was moved away from its run, or imported."
        }
    model = _model_number(Path(checkpoint).name)
    records = [record for record in _records(folder / "metrics.jsonl") if record.get("model", 0) == model]
    settings = read_json(folder / "config.json", FeatureIndexError)
    return {
        "missing": None,
        "folder": str(Path(*folder.parts[-2:])),
        "path": str(folder),
        "facts": _facts(records),
        "curves": [curve for each in CURVES if (curve := _curve(records, *each)) is not None],
        "settings": [[name, _shown(value)] for name, value in _leaves(_of_model(settings, model))],
    }


def _records(path: Path) -> Iterator[Json]:
    """The whole lines of the log; the last one of a run that is being trained may be half written."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("tokens"), int):
            yield record


def _curve(records: list[Json], key: str, title: str, note: str, is_log: bool) -> Json | None:
    points = [
        (record["tokens"], float(record[key]))
        for record in records
        if isinstance(record.get(key), (int, float)) and math.isfinite(record[key])
    ]
    if len(points) < 2:
        return None
    step = max(1, math.ceil(len(points) / MAX_POINTS))
    kept = points[::step] if points[::step][-1] == points[-1] else [*points[::step], points[-1]]
    values = [value for _, value in kept]
    return {
        "key": key,
        "title": title,
        "note": note,
        "x": [tokens for tokens, _ in kept],
        "y": values,
        "log": is_log and min(values) > 0 and max(values) > 1.5 * min(values),
        "percent": key == "dead",
    }


def _facts(records: list[Json]) -> list[list[str]]:
    if not records:
        return []
    last = records[-1]
    facts = [["Tokens", f"{last['tokens']:,}"], ["Steps", f"{last['step']:,}"], ["Time", _duration(last["seconds"])]]
    if last["seconds"] > 0:
        facts.append(["Tokens per second", f"{last['tokens'] / last['seconds']:,.0f}"])
    for key, name, shape in (("l0", "L0", "{:.1f}"), ("fvu", "FVU", "{:.3f}"), ("dead", "Dead", "{:.1%}")):
        if isinstance(last.get(key), (int, float)):
            facts.append([name, shape.format(last[key])])
    return facts


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if hours < 2 else f"{hours} h {minutes % 60} min"


def _model_number(checkpoint: str) -> int:
    tail = checkpoint.removeprefix("checkpoint-")
    return int(tail) if tail.isdigit() else 0


def _of_model(settings: Json, model: int) -> Json:
    """The settings without those of the other models of a sweep."""
    models = settings.get("models") or []
    mine = models[model] if model < len(models) else {}
    return {"autoencoder": mine, **(settings.get("provenance") or {})}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            if key != "kind" or name == "autoencoder.config.sparsity":
                yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
