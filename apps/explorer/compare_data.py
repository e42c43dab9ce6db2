"""Several dictionaries side by side, from their metrics.json and indexes. NumPy only, no Streamlit."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saekit.errors import ConfigError, FeatureIndexError, SaekitError
from saekit.files import read_json
from saekit.index import FeatureIndex
from saekit_explorer.widgets import Json, finite

METRICS = "metrics.json"
GENERIC = ("run", "index", "eval", "evaluation", "checkpoint", "out")
"""Names of folders that say nothing without the folder above."""

Get = Callable[[Json], Any]


def _at(*keys: str) -> Get:
    def get(found: Json) -> Any:
        value: Any = found
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return get


def _sae(part: str, key: str) -> Get:
    return lambda found: _at(part, key)((found.get("methods") or [{}])[0])


def _probe(features: str, k: int | None) -> Get:
    def get(found: Json) -> Any:
        results = _at("usefulness", "probing", "results")(found) or []
        return next((each["accuracy"] for each in results if (each["features"], each["k"]) == (features, k)), None)

    return get


def _bits(found: Json) -> Any:
    lengths = _at("usefulness", "description_length")(found) or []
    return next((each["bits"] for each in lengths if (each["code"], each["n_bins"]) == ("sae", 16)), None)


# Key, title, group, which way is better (0: neither), format, where it is, and what it means.
MEASURES: tuple[tuple[str, str, str, int, str, Get, str], ...] = (
    ("d_sae", "Latents", "Dictionary", 0, "count", _at("latents", "n_latents"), "number of latents"),
    ("l0", "L0", "Dictionary", -1, "number", _at("latents", "l0"), "latents active per token"),
    ("dead", "Dead", "Dictionary", -1, "percent", _at("latents", "dead_share"), "silent at the end of training"),
    (
        "silent",
        "Silent here",
        "Dictionary",
        -1,
        "percent",
        _at("latents", "silent_share"),
        "silent on what was measured",
    ),
    ("dense", "Dense", "Dictionary", -1, "percent", _at("latents", "dense_share"), "fire on more than 10% of tokens"),
    ("fvu", "FVU", "Reconstruction", -1, "number", _sae("reconstruction", "fvu"), "share of variance unexplained"),
    ("mse", "MSE", "Reconstruction", -1, "number", _sae("reconstruction", "mse"), "mean squared error per element"),
    ("cosine", "Cosine", "Reconstruction", 1, "number", _sae("reconstruction", "cosine"), "mean cos(x, x_hat)"),
    (
        "bias",
        "Shrinkage",
        "Reconstruction",
        0,
        "number",
        _sae("reconstruction", "reconstruction_bias_centred"),
        "relative reconstruction bias about the mean; below 1 is shrunk",
    ),
    (
        "ce_zero",
        "CE recovered, zero",
        "Faithfulness",
        1,
        "percent",
        _sae("faithfulness", "ce_recovered_zero"),
        "of the loss of zero ablation",
    ),
    (
        "ce_mean",
        "CE recovered, mean",
        "Faithfulness",
        1,
        "percent",
        _sae("faithfulness", "ce_recovered_mean"),
        "of the loss of mean ablation",
    ),
    (
        "kl",
        "KL",
        "Faithfulness",
        -1,
        "number",
        _sae("faithfulness", "kl"),
        "KL(clean, spliced) of the predictions, nats",
    ),
    (
        "representation",
        "Representation recovered",
        "Faithfulness",
        1,
        "percent",
        _sae("faithfulness", "representation_recovered_mean"),
        "of the last layer, against the mean",
    ),
    (
        "linear",
        "Linear probe",
        "Faithfulness",
        1,
        "percent",
        _sae("faithfulness", "linear_probe_accuracy"),
        "accuracy on the final representation, spliced",
    ),
    (
        "probe1",
        "Probe, k=1",
        "Usefulness",
        1,
        "number",
        _probe("latents", 1),
        "balanced accuracy of one latent per class",
    ),
    (
        "probe5",
        "Probe, k=5",
        "Usefulness",
        1,
        "number",
        _probe("latents", 5),
        "balanced accuracy of five latents per class",
    ),
    (
        "mono",
        "Monosemanticity",
        "Usefulness",
        1,
        "number",
        _at("usefulness", "monosemanticity", "latents", "mean"),
        "mean over latents",
    ),
    (
        "lift",
        "Class lift",
        "Usefulness",
        1,
        "number",
        _at("usefulness", "labels", "lift", "q50"),
        "of the top class, median over latents",
    ),
    ("bits", "Bits per token", "Usefulness", -1, "number", _bits, "of the code at 16 levels per latent"),
    (
        "near",
        "Nearest cosine",
        "Geometry",
        -1,
        "number",
        _at("usefulness", "dictionary", "nearest_cosine", "q50"),
        "median over latents",
    ),
    (
        "rank",
        "Effective rank",
        "Geometry",
        1,
        "number",
        _at("usefulness", "dictionary", "effective_rank"),
        "of the decoder",
    ),
)
X_AXES = ("l0", "bits", "d_sae")
Y_AXES = ("fvu", "ce_mean", "representation", "kl", "probe1", "mono", "dead")
_INTERVALS = {
    "fvu": _sae("reconstruction", "fvu_interval"),
    "ce_zero": _sae("faithfulness", "ce_recovered_zero_interval"),
    "ce_mean": _sae("faithfulness", "ce_recovered_mean_interval"),
    "kl": _sae("faithfulness", "kl_interval"),
    "linear": _sae("faithfulness", "linear_probe_accuracy_interval"),
}


def comparison(index: FeatureIndex, paths: Sequence[Path]) -> Json:
    """What the Compare page draws: this index and every path, with the measures that any of them has.

    A path that has become unreadable is named in `problems`; the others are shown.
    """
    entries: list[Json] = []
    problems: list[str] = []
    for path in dict.fromkeys(paths):
        try:
            entries.append(read_entry(path))
        except SaekitError as error:
            problems.append(str(error))
    own = _own_checkpoint(index)
    entries = [entry for entry in entries if entry["path"] != str(index.path.resolve())]
    for entry in entries:
        of_same = own is not None and entry["checkpoint"] in (own, str(Path(own).parent))
        entry["mine"] = of_same and not entry["is_index"]
    if not any(entry["mine"] for entry in entries):
        entries.insert(0, {**_of_index(index), "mine": True})
    entries.sort(key=lambda entry: not entry["mine"])
    for entry, name in zip(entries, short_names([entry["path"] for entry in entries]), strict=True):
        entry["name"] = name
    known = [each for each in MEASURES if any(entry["values"].get(each[0]) is not None for entry in entries)]
    best = {key: _best(entries, key, better) for key, _, _, better, *_ in known}
    data = {entry["data"] for entry in entries if entry["data"]}
    return {
        "entries": entries,
        "measures": [
            {
                "key": key,
                "title": title,
                "group": group,
                "better": better,
                "format": shown,
                "help": text,
                "best": best[key],
            }
            for key, title, group, better, shown, _, text in known
        ],
        "x": [key for key in X_AXES if key in {each[0] for each in known}],
        "y": [key for key in Y_AXES if key in {each[0] for each in known}],
        "different_data": len(data) > 1,
        "problems": problems,
    }


def read_entry(path: Path) -> Json:
    """One dictionary: an evaluation (a metrics.json, or a folder with one) or an index.

    Raises `ConfigError` when `path` is neither.
    """
    file = path / METRICS if path.is_dir() else path
    if file.name == METRICS and file.is_file():
        found = read_json(file, ConfigError)
        if not isinstance(found, dict) or found.get("kind") != "Evaluation" or not found.get("methods"):
            raise ConfigError(f"{file} is no evaluation of saekit's.")
        return _of_evaluation(file.parent, found)
    if (path / "meta.json").is_file():
        try:
            return _of_index(FeatureIndex.open(path))
        except FeatureIndexError as error:
            raise ConfigError(f"{path} is neither an evaluation nor an index ({error})") from None
    raise ConfigError(f"{path} has no metrics.json and is no index. Type: saekit eval --out {path}")


def stamp(path: Path) -> int:
    """Changes whenever what is at `path` is written again."""
    for file in (path / METRICS, path / "meta.json", path):
        if file.is_file():
            return file.stat().st_mtime_ns
    return 0


def short_names(paths: Sequence[str]) -> list[str]:
    """The end of each path that tells it from the others and says something."""
    parts = [Path(path).parts for path in paths]
    names = []
    for mine in parts:
        n = 2 if mine[-1] in GENERIC and len(mine) > 1 else 1
        while n < len(mine) and sum(other[-n:] == mine[-n:] for other in parts) > 1:
            n += 1
        names.append("/".join(mine[-n:]))
    return names


def _of_evaluation(path: Path, found: Json) -> Json:
    data, config = found.get("data") or {}, found.get("config") or {}
    histogram = (found.get("latents") or {}).get("density_histogram")
    checkpoint = config.get("checkpoint")
    return {
        "path": str(path.resolve()),
        "is_index": False,
        "checkpoint": None if checkpoint is None else str(Path(checkpoint).resolve()),
        "about": _about((found.get("checkpoint") or {}).get("config") or {}, str(data.get("hook_point", ""))),
        "data": f"{data.get('store_hash')} {data.get('held_out_share')} {data.get('hook_point')}",
        "values": {key: _number(get(found)) for key, *_, get, _ in MEASURES},
        "intervals": {key: get(found) for key, get in _INTERVALS.items() if get(found)},
        "baselines": [
            {
                "name": method["name"],
                "k": method["k"],
                "values": {
                    key: _number(get({"methods": [method]}))
                    for key, *_, get, _ in MEASURES
                    if key in ("fvu", "ce_mean", "representation", "kl")
                },
            }
            for method in found["methods"][1:]
            if method.get("k") and method["name"] not in ("identity",)
        ],
        "density": histogram,
    }


def _of_index(index: FeatureIndex) -> Json:
    density = np.asarray(index.stats["density"], dtype=np.float64)
    edges = np.linspace(-8, 0, 41)
    counts = np.histogram(np.log10(density[density > 0]).clip(-8, 0), bins=edges)[0]
    about = (index.meta.get("checkpoint") or {}).get("config") or {}
    return {
        "path": str(index.path.resolve()),
        "is_index": True,
        "checkpoint": _own_checkpoint(index),
        "about": _about(about, str(index.meta.get("hook_point", ""))),
        "data": "",
        "values": {
            "d_sae": index.d_sae,
            "l0": index.n_codes / max(index.n_rows, 1),
            "silent": float(np.mean(density == 0)),
            "dense": float(np.mean(density > 0.1)),
            "near": finite(np.nanmedian(np.asarray(index.stats["nearest_cosine"], dtype=np.float64)))
            if "nearest_cosine" in index.stats
            else None,
        },
        "intervals": {},
        "baselines": [],
        "density": {"log10_edges": edges.round(6).tolist(), "counts": counts.tolist()},
    }


def _about(config: Json, hook_point: str) -> str:
    """`TopK k=32 at layers.6`: the sparsity with its first number."""
    sparsity = config.get("sparsity") or {}
    first = next(((name, value) for name, value in sparsity.items() if name != "kind" and value is not None), None)
    kind = sparsity.get("kind", config.get("kind", ""))
    shown = f"{kind} {first[0]}={first[1]}" if first and not isinstance(first[1], (dict, list)) else str(kind)
    return f"{shown} at {hook_point}" if hook_point else shown


def _own_checkpoint(index: FeatureIndex) -> str | None:
    path = (index.meta.get("checkpoint") or {}).get("path")
    return None if not path else str(Path(path).resolve())


def _best(entries: Sequence[Json], key: str, better: int) -> list[int]:
    values = [entry["values"].get(key) for entry in entries]
    known = [value for value in values if value is not None]
    # Fewer active latents are a choice with a price, not a result.
    if not better or key == "l0" or len(known) < 2 or min(known) == max(known):
        return []
    top = max(known) if better > 0 else min(known)
    return [i for i, value in enumerate(values) if value == top]


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value
