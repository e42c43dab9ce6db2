"""Where an evaluation may be written, what is written there, and evaluating inputs without a store."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import saekit.jobs.evaluate as job
from saekit.backbones import CausalLM, load_backbone
from saekit.errors import CheckpointError, ConfigError, HookPointError, InputError
from saekit.evaluation.outputs import check_out
from saekit.evaluation.report import draw, page_of
from saekit.inputs import SkipLog, read_images
from saekit.jobs.evaluate import EvaluateConfig, evaluate, run
from saekit.store import ActivationStore
from saekit.store.split import held_out
from tests import tiny
from tests.indexes import make_tiny_index
from tests.test_evaluate import identity_sae, images, lm, make_sae, make_store, store  # noqa: F401

POINT = "layers.0"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    folder = tmp_path / "texts"
    for i in range(40):
        label = ("early", "late")[i % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        words = random.integers(0, 10, 14) + 10 * (i % 2)
        (folder / label / f"{i:02d}.txt").write_text(" ".join(chr(97 + i) for i in words))
    return folder


def test_inputs_without_a_store_are_run_through_the_model_and_nothing_of_it_stays(
    store: ActivationStore,  # noqa: F811
    lm: CausalLM,  # noqa: F811
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "load_backbone", lambda spec, dtype, device: lm)
    sae = make_sae(store)
    sae.provenance = {**(sae.provenance or {}), "held_out_share": 0.25}
    sae.save(tmp_path / "sae", provenance=sae.provenance)
    out = tmp_path / "eval"
    path = run(EvaluateConfig(checkpoint=tmp_path / "sae", inputs=texts, out=out, n_examples=4, n_baseline_tokens=64))
    found = json.loads(path.read_text())
    documents = [f"{label}/{i:02d}.txt" for i in range(40) for label in [("early", "late")[i % 2]]]
    assert found["data"]["n_documents"] == held_out(documents, 0.25).sum() > 2
    assert found["data"]["is_store_of_training"] is False
    assert found["faithfulness"]["kind"] == "next_token"
    assert found["usefulness"]["probing"].get("skipped") or found["usefulness"]["probing"]["n_test"] > 0
    assert sorted(each.name for each in out.iterdir()) == [
        "evaluation.html",
        "evaluation.png",
        "latents.csv",
        "metrics.json",
    ]
    with (out / "latents.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 64
    assert float(rows[3]["density"]) >= 0
    page = (out / "evaluation.html").read_text()
    assert "<img" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(HookPointError, match="no hook point 'layers.77'"):
        run(EvaluateConfig(checkpoint=tmp_path / "sae", inputs=texts, out=tmp_path / "b", hook_point="layers.77"))
    with pytest.raises(ConfigError, match="nothing to measure on"):
        run(EvaluateConfig(checkpoint=tmp_path / "sae", inputs=texts, out=tmp_path / "b", backbone="none"))
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").iterdir())


def test_an_evaluation_is_not_mixed_with_something_else(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "report.png").write_text("")
    for fine in (tmp_path / "new", tmp_path / "run", checkpoint):
        check_out(fine, checkpoint, tmp_path / "acts")
    full = tmp_path / "full"
    full.mkdir()
    check_out(full, checkpoint, None)
    (full / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"full holds something else \(thesis.tex\)"):
        check_out(full, checkpoint, None)
    (full / "thesis.tex").unlink()
    (full / "metrics.json").write_text('{"accuracy": 1}')
    with pytest.raises(ConfigError, match="is no evaluation"):
        check_out(full, checkpoint, None)
    config = {"checkpoint": str(tmp_path / "run"), "store": str(tmp_path / "acts")}
    (full / "metrics.json").write_text(json.dumps({"kind": "Evaluation", "config": config}))
    check_out(full, checkpoint, tmp_path / "acts")
    with pytest.raises(ConfigError, match="holds an evaluation of store .*acts"):
        check_out(full, checkpoint, tmp_path / "others")
    with pytest.raises(ConfigError, match="holds an evaluation of checkpoint .*run"):
        check_out(full, tmp_path / "another", tmp_path / "acts")


def test_what_is_asked_for_must_fit_before_anything_is_written(
    store: ActivationStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    sae = make_sae(store)
    sae.save(tmp_path / "sae", provenance=sae.provenance)
    with pytest.raises(ConfigError, match="neither a store .* nor inputs"):
        EvaluateConfig(checkpoint=tmp_path, out=tmp_path)
    with pytest.raises(ConfigError, match="an embedder needs the images"):
        EvaluateConfig(checkpoint=tmp_path, store=tmp_path, out=tmp_path, embedder="dinov2")
    other = make_tiny_index(tmp_path / "index")
    out = tmp_path / "eval"
    asked = {"checkpoint": tmp_path / "sae", "store": store.path, "out": out, "backbone": "none"}
    with pytest.raises(CheckpointError, match="an index of 24 features; the checkpoint has 64"):
        run(EvaluateConfig(**asked, index=other.path))
    labels = tmp_path / "labels.csv"
    labels.write_text("document,label\nnobody,x\n")
    with pytest.raises(InputError, match="1 documents are not in the store, first 'nobody'"):
        run(EvaluateConfig(**asked, labels=labels))
    assert not out.exists()


def test_labels_of_a_file_are_probed_and_the_page_escapes_what_it_quotes(
    store: ActivationStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    sae = make_sae(store)
    sae.save(tmp_path / "sae", provenance=sae.provenance)
    labels = tmp_path / "labels.csv"
    names = {document: ("<b>odd", "even")[i % 2] for i, document in enumerate(store.examples.documents)}
    labels.write_text("".join(f"{document},{name}\n" for document, name in names.items()))
    config = EvaluateConfig(
        checkpoint=tmp_path / "sae", store=store.path, out=tmp_path / "e", backbone="none", labels=labels, report=False
    )
    found = json.loads(run(config).read_text())
    assert found["usefulness"]["labels"]["n_labels"] == 2
    assert found["config"]["labels"] == str(labels)
    found["checkpoint"]["class"] = "<script>"
    page = page_of(found, draw(found))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    short = evaluate(sae, store, usefulness=False, n_bootstrap=10)
    assert short.to_json()["usefulness"] is None
    assert "Probing" not in short.table()


def test_a_linear_probe_is_fitted_on_other_images_and_another_model_may_judge_monosemanticity(
    images: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    vit, judge = (load_backbone(tiny.make(family, tmp_path / family)) for family in ("dinov2", "vit"))
    examples = list(vit.examples(read_images(images), vit.default_options(), SkipLog()))
    pictures = make_store(tmp_path / "acts", vit, examples)
    found = evaluate(
        identity_sae(pictures),
        pictures,
        backbone=vit,
        inputs=read_images(images),
        embedder=judge,
        held_out_share=0.0,
        n_examples=9,
        n_bootstrap=20,
    )
    facts, sae = found.faithfulness, found.sae.faithfulness
    # Not those that are measured, and not the 30 % that probes are judged on.
    assert 0 < facts["n_probe_images"] <= 24 - 9
    assert sae["linear_probe_accuracy"] == facts["linear_probe_accuracy_clean"] > 0.34
    assert "probe accuracy" in found.table()
    assert found.usefulness is not None
    assert found.usefulness.monosemanticity["embedding"] == f"final representation of {judge.spec}"
    assert found.usefulness.monosemanticity["latents"]["n"] > 0
