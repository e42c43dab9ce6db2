"""What an evaluation leaves in its folder, and the refusal to leave it where something else is."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from saekit.errors import ConfigError
from saekit.evaluation.report import write_report
from saekit.evaluation.result import Evaluation
from saekit.files import atomic_write, read_json, write_json

METRICS = "metrics.json"
LATENTS = "latents.csv"
OURS = (METRICS, LATENTS, "evaluation.html", "evaluation.png")


def check_out(out: Path, checkpoint: Path, store: Path | None) -> None:
    """Raise `ConfigError` when writing to `out` would mix an evaluation with something else, or replace another one.

    Fine are a folder that is new or empty, the folder of the run that `checkpoint` is from, and that of an earlier
    evaluation of the same checkpoint on the same store.
    """
    if not out.is_dir():
        return
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    is_own_run = out.resolve() in (checkpoint.resolve(), checkpoint.resolve().parent)
    strangers = [name for name in names if name not in OURS]
    if strangers and not is_own_run:
        raise ConfigError(
            f"{out} holds something else ({', '.join(strangers[:4])}{' ...' if strangers[4:] else ''}); an evaluation "
            "goes into a new folder, an empty one, or that of the checkpoint's own run. Choose another --out."
        )
    if METRICS not in names:
        return
    before = read_json(out / METRICS, ConfigError)
    if not isinstance(before, dict) or before.get("kind") != "Evaluation":
        raise ConfigError(f"{out / METRICS} is no evaluation of saekit's. Choose another --out.")
    if is_own_run:
        return
    asked = before.get("config") or {}
    other = [
        f"of {name} {asked.get(name)}"
        for name, now in (("checkpoint", checkpoint), ("store", store))
        if not _same(asked.get(name), now, is_checkpoint=name == "checkpoint")
    ]
    if other:
        raise ConfigError(f"{out} holds an evaluation {' and '.join(other)}. Choose another --out, or delete it first.")


def write_outputs(
    found: Evaluation, out: Path, checkpoint: Path, config: dict[str, Any], *, report: bool = True
) -> Path:
    """Write `metrics.json`, `latents.csv` and, with `report`, the page and the picture; the path of the first."""
    metrics = {**found.to_json(), "config": config}
    if found.usefulness is not None:
        _write_columns(out / LATENTS, found.usefulness.columns)
    if report:
        write_report(out, metrics)
    # Last: where it is, the rest is whole.
    write_json(out / METRICS, metrics)
    return out / METRICS


def _same(before: object, now: Path | None, is_checkpoint: bool) -> bool:
    if before is None or now is None:
        return before is None and now is None
    recorded = Path(str(before)).resolve()
    if recorded == now.resolve():
        return True
    # A run and the checkpoint inside it are one thing.
    return is_checkpoint and now.resolve().parent == recorded


def _write_columns(path: Path, columns: dict[str, np.ndarray]) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["latent", *columns])
        for latent, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([latent, *map(_cell, row)])


def _cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.6g}"
    return str(value)
