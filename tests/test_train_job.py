"""`saekit train` on a small real store: what it makes, what it holds out, how it resumes and what it refuses."""

import dataclasses
import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from stores import make_tiny_store
from torch import Tensor

from saekit.autoencoders import Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK, load_autoencoder
from saekit.errors import CheckpointError, ConfigError, StoreError
from saekit.evaluation.rows import split_examples
from saekit.jobs import train as job
from saekit.jobs.train import TrainConfig, held_out_rows, measure, run, train
from saekit.metrics import fvu, l0
from saekit.store import ActivationStore
from saekit.training import FitConfig, FitResult, fit

RECIPES = sorted((Path(__file__).parents[1] / "scripts/recipes").glob("*.py"))
QUIET = FitConfig(lr=3e-3, progress=False, save_every=3, log_every=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_tiny_store(tmp_path_factory.mktemp("store") / "acts", n_examples=40, d=8)


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's `fit` is the function; the module of that name is found by import.
    loop = importlib.import_module("saekit.training.fit")
    monkeypatch.setattr(loop, "write_report", lambda path, *_: Path(path).write_bytes(b"report"))


def config_for(store: ActivationStore, out: Path, **settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "sparsity": TopK(k=2),
        "d_sae": 32,
        "n_tokens": 640,
        "batch_size": 64,
        "held_out_share": 0.2,
        "device": "cpu",
        "fit": QUIET,
    }
    return TrainConfig(store=store.path, out=out, **{**defaults, **settings})


def test_a_run_makes_a_checkpoint_that_knows_its_store(store: ActivationStore, tmp_path: Path) -> None:
    assert run(config_for(store, tmp_path / "run")) == tmp_path / "run"
    sae = load_autoencoder(tmp_path / "run/checkpoint")
    assert isinstance(sae, SparseAutoencoder)
    mean, mean_squared_norm = store.moments()
    assert sae.input_mean.tolist() == pytest.approx(torch.as_tensor(mean).tolist(), rel=1e-6)
    assert float(sae.input_scale) == pytest.approx((8 / mean_squared_norm) ** 0.5)
    assert int(sae.n_tokens_seen) == 640
    assert sae.provenance is not None
    assert sae.provenance["store_hash"] == store.content_hash
    assert sae.provenance["hook_point"] == "layers.1"
    assert sae.provenance["held_out_share"] == 0.2
    assert sae.provenance["training"]["batch_size"] == 64


def test_held_out_documents_are_never_trained_on(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def collect(models: Any, batches: Iterable[Tensor], *_: Any, **__: Any) -> FitResult:
        seen.extend(batches)
        return fit(models, seen, QUIET)

    monkeypatch.setattr(job, "fit", collect)
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=8, d_sae=32, sparsity=TopK(k=2)))
    train(sae, store, tmp_path, held_out_share=0.2)
    is_out = held_out_rows(store, 0.2)
    expected = store.rows(0, store.n_rows)[torch.from_numpy(~is_out)]
    assert 0 < is_out.sum() < store.n_rows / 2
    assert sorted(torch.cat(seen).float().tolist()) == sorted(expected.float().tolist())


def test_training_and_evaluation_agree_on_what_is_held_out(store: ActivationStore) -> None:
    evaluated, trained = split_examples(store, 0.2)
    is_out = held_out_rows(store, 0.2)
    assert set(store.row_example[is_out]) == set(evaluated)
    assert set(store.row_example[~is_out]) == set(trained)


def test_the_printed_numbers_are_those_of_held_out_rows(
    store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config_for(store, tmp_path / "run"))
    sae = load_autoencoder(tmp_path / "run/checkpoint")
    assert isinstance(sae, SparseAutoencoder)
    is_out = held_out_rows(store, 0.2)
    x = store.rows(0, store.n_rows)[torch.from_numpy(is_out)].float()
    with torch.no_grad():
        expected_l0, expected_fvu = l0(sae.encode(x)).item(), fvu(x.double(), sae(x).double()).item()
    measured = measure(sae, store, "layers.1", is_out)
    assert (measured.l0, measured.fvu) == pytest.approx((expected_l0, expected_fvu), rel=1e-5)
    assert measured.n_tokens == len(x)
    assert json.loads((tmp_path / "run/health.json").read_text())["models"]["checkpoint"]["n_tokens"] == len(x)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(tmp_path / "run")
    assert f"L0 {expected_l0:.1f}, FVU {expected_fvu:.4f} on {len(x)} tokens of held-out documents" in printed[1]
    assert "of 32 latents (silent for the last 64 training tokens)" in printed[1]


def test_without_held_out_documents_the_numbers_say_that_they_are_of_training(
    store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config_for(store, tmp_path / "run", held_out_share=0.0))
    assert "on the last 64 training tokens" in (printed := capsys.readouterr().out)
    assert "no document is held out" in printed


def test_a_share_that_holds_nothing_out_is_recorded_as_none(store: ActivationStore, tmp_path: Path) -> None:
    run(config_for(store, tmp_path / "run", held_out_share=1e-9))
    provenance = load_autoencoder(tmp_path / "run/checkpoint").provenance
    assert provenance is not None
    assert provenance["held_out_share"] == 0.0


def test_an_interrupted_run_on_a_store_goes_on_to_the_same_weights(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config_for(store, tmp_path / "whole"))

    class Stop(Exception):
        pass

    original = SparseAutoencoder.training_loss

    def stopping(self: SparseAutoencoder, x: Tensor) -> Any:
        if int(self.n_tokens_seen) == 5 * 64:
            raise Stop
        return original(self, x)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(SparseAutoencoder, "training_loss", stopping)
        run(config_for(store, tmp_path / "stopped"))
    run(config_for(store, tmp_path / "stopped"))
    whole, stopped = (load_autoencoder(tmp_path / name / "checkpoint").state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_a_finished_run_says_so_and_prints_the_same_numbers(
    store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config_for(store, tmp_path / "run"))
    first = capsys.readouterr().out
    before = (tmp_path / "run/checkpoint/weights.safetensors").stat().st_mtime_ns
    run(config_for(store, tmp_path / "run"))
    again = capsys.readouterr().out
    assert "finished already; nothing was trained" in again
    assert again.endswith(first)
    assert (tmp_path / "run/checkpoint/weights.safetensors").stat().st_mtime_ns == before


def test_going_on_with_another_store_or_config_lists_what_differs(store: ActivationStore, tmp_path: Path) -> None:
    run(config_for(store, tmp_path / "run"))
    other = make_tiny_store(tmp_path / "other", n_examples=40, d=8, seed=5)
    changed = dataclasses.replace(config_for(other, tmp_path / "run"), sparsity=TopK(k=3), seed=1)
    with pytest.raises(CheckpointError) as error:
        run(changed)
    for part in ("store_hash", "sparsity.k: 2 there, 3 now", "seed: 0 there, 1 now"):
        assert part in str(error.value)


def test_expansion_is_a_multiple_of_the_width(store: ActivationStore, tmp_path: Path) -> None:
    run(config_for(store, tmp_path / "run", d_sae=None, expansion=3))
    assert load_autoencoder(tmp_path / "run/checkpoint").config.d_sae == 24


def test_the_default_is_every_row_that_is_not_held_out_once(store: ActivationStore, tmp_path: Path) -> None:
    run(config_for(store, tmp_path / "run", n_tokens=None))
    sae = load_autoencoder(tmp_path / "run/checkpoint")
    assert isinstance(sae, SparseAutoencoder)
    assert int(sae.n_tokens_seen) == int((~held_out_rows(store, 0.2)).sum())


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"d_sae": 8, "expansion": 4}, ["exactly one of d_sae=8 and expansion=4"]),
        ({"d_sae": None}, ["exactly one of d_sae=None and expansion=None"]),
        ({"batch_size": 0, "held_out_share": 1.5}, ["batch_size=0", "held_out_share=1.5"]),
    ],
    ids=["both widths", "no width", "two mistakes"],
)
def test_a_config_that_cannot_be_is_refused(
    store: ActivationStore, tmp_path: Path, settings: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        config_for(store, tmp_path / "run", **settings)
    assert all(part in str(error.value) for part in parts)


def test_more_active_latents_than_latents_is_refused_before_anything_is_written(
    store: ActivationStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"TopK\.k=64 exceeds d_sae=32"):
        run(config_for(store, tmp_path / "run", sparsity=TopK(k=64)))
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_of_another_width_is_refused(store: ActivationStore, tmp_path: Path) -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=9, d_sae=32, sparsity=TopK(k=2)))
    with pytest.raises(ConfigError, match="8 wide at layers.1 and the autoencoder takes d_in=9"):
        train(sae, store, tmp_path / "run")


def test_a_store_whose_documents_are_all_held_out_is_refused(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "acts", n_examples=2, d=8)
    share = np.nextafter(1, 0)
    with pytest.raises(ConfigError, match="All 1 documents"):
        held_out_rows(store, float(share))


def test_a_dictionary_wider_than_the_memory_says_what_would_fit(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saekit.training.memory.device_memory", lambda device: 4 * 2**20)
    with pytest.raises(ConfigError, match=r"takes 259 MiB.*has 4 MiB. About d_sae=12336 would fit"):
        run(config_for(store, tmp_path / "run", d_sae=1_000_000))


def test_a_nan_in_the_store_names_shard_and_row(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "acts", n_examples=40, d=8, dtype="fp32")
    row = int(np.flatnonzero(~held_out_rows(store, 0.2))[-1])
    shard = int(np.searchsorted(store.first_rows, row, side="right")) - 1
    file = next(path for path in (store.path / f"shards/{shard:05d}").iterdir() if path.suffix != ".json")
    data = bytearray(file.read_bytes())
    at = (row - int(store.first_rows[shard])) * 8 * 4
    data[at : at + 4] = np.float32("nan").tobytes()
    file.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=rf"shard {shard:05d}, row \d+ \(row {row} of the store"):
        run(config_for(store, tmp_path / "run"))
    assert not (tmp_path / "run/checkpoint").exists()


def test_the_command_line_reads_the_sparsity_after_its_name(tmp_path: Path) -> None:
    words = ["--store", "acts", "--out", "run", "--expansion", "16", "--lr", "0.001", "relu", "--l1", "2.5"]
    config = tyro.cli(TrainConfig, args=words)
    assert config.sparsity == Relu(l1=2.5)
    assert (config.expansion, config.fit.lr, config.store) == (16, 0.001, Path("acts"))


def test_the_default_sparsity_needs_no_name() -> None:
    config = tyro.cli(TrainConfig, args=["--store", "acts", "--out", "run", "--d-sae", "64"])
    assert config.sparsity == TopK(k=32)
    assert config.fit.lr == "auto"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_its_smoke_test_and_says_what_it_needs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_tiny_store(tmp_path / "acts", n_examples=20, d=48)
    monkeypatch.syspath_prepend(recipe.parent)
    module = importlib.import_module(recipe.stem)
    module.main(module.Arguments(store=store.path, out=tmp_path / "run", smoke=True))
    sae = load_autoencoder(tmp_path / "run/checkpoint")
    assert isinstance(sae, SparseAutoencoder)
    assert int(sae.n_tokens_seen) == 256
    assert all(word in module.__doc__ for word in ("Command ", "Hardware ", "Minutes ", "Expected "))


def test_the_files_of_a_run_are_those_of_the_formats_page(store: ActivationStore, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/formats.md").read_text(encoding="utf-8").split("## Training run")[1]
    run(config_for(store, tmp_path / "run"))
    names = {entry.name for entry in (tmp_path / "run").iterdir()}
    pointer = json.loads((tmp_path / "run/run.json").read_text())
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    parts = {"reconstruction", "auxk"}
    documented = set(re.findall(r"`([a-z_0-9.]+)/?`", page))
    assert names | set(pointer) | set(line) - parts <= documented
    assert (pointer["kind"], pointer["schema"], pointer["finished"]) == ("TrainingRun", 1, True)
