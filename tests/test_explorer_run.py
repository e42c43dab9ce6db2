"""The Run page: what it reads of a training run, and what it says where there is none."""

import json
from pathlib import Path

import pytest
from indexes import make_tiny_index
from test_explorer_apptest import open_page, payload, serve

from saekit.files import read_json, write_json
from saekit.index import FeatureIndex
from saekit_explorer.run_data import MAX_POINTS, run_page


def with_run(folder: Path, records: list[dict], checkpoint: str = "checkpoint") -> FeatureIndex:
    """A tiny index whose checkpoint lies in a run with this log."""
    index = make_tiny_index(folder / "index")
    run = folder / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    models = [{"class": "SparseAutoencoder", "config": {"d_sae": 24 * (i + 1)}} for i in range(2)]
    write_json(
        run / "config.json", {"models": models, "provenance": {"hook_point": "layers.1", "training": {"lr": 1e-3}}}
    )
    meta = read_json(index.path / "meta.json")
    meta["checkpoint"] = {**(meta.get("checkpoint") or {}), "path": str(run / checkpoint)}
    write_json(index.path / "meta.json", meta)
    return FeatureIndex.open(index.path)


def record(step: int, model: int = 0, **values: object) -> dict:
    return {"step": step, "tokens": 100 * step, "seconds": 0.5 * step, "model": model, **values}


def test_the_page_draws_the_log_of_its_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(step, model, fvu=(model + 1) / step, l0=8.0, dead=0.0) for step in (1, 2, 4) for model in (0, 1)]
    index = with_run(tmp_path, records, "checkpoint-1")
    serve(index.path, monkeypatch)
    shown = payload(open_page("run"), "run")
    curves = {curve["key"]: curve for curve in shown["curves"]}
    assert curves["fvu"]["x"] == [100, 200, 400]
    assert curves["fvu"]["y"] == [2.0, 1.0, 0.5]
    assert curves["fvu"]["log"]
    assert ["Tokens", "400"] in shown["facts"]
    assert ["FVU", "0.500"] in shown["facts"]
    assert ["autoencoder.config.d_sae", "48"] in shown["settings"]
    assert ["training.lr", "0.001"] in shown["settings"]


def test_a_long_log_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    index = with_run(tmp_path, [record(step, fvu=1 / step) for step in range(1, 2002)])
    curve = run_page(index)["curves"][0]
    assert len(curve["x"]) <= MAX_POINTS + 1
    assert curve["x"][-1] == 200_100


def test_half_a_line_and_missing_values_are_left_out(tmp_path: Path) -> None:
    index = with_run(tmp_path, [record(1, fvu=0.5), record(2, fvu=None), record(3, fvu=0.25)])
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "tok')
    assert run_page(index)["curves"][0]["y"] == [0.5, 0.25]


def test_an_index_without_its_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_tiny_index(tmp_path / "index")
    serve(index.path, monkeypatch)
    assert "no training log" in payload(open_page("run"), "run")["missing"]


def test_an_empty_log_is_a_page_without_curves(tmp_path: Path) -> None:
    page = run_page(with_run(tmp_path, []))
    assert page["curves"] == []
    assert page["facts"] == []
