"""`saekit train --recipe`: a published recipe on a store, and what is given beside it."""

import importlib
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stores import make_tiny_store

from saekit.autoencoders import BatchTopK, Relu, SparseAutoencoder, load_autoencoder
from saekit.cli import load_job
from saekit.errors import ConfigError
from saekit.jobs.train import TrainConfig, recipe_config, run
from saekit.store import ActivationStore
from saekit.training import FitConfig
from saekit.training.recipes import RECIPES, RecipeName

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_tiny_store(tmp_path_factory.mktemp("store") / "acts", n_examples=40, d=8)


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = importlib.import_module("saekit.training.fit")
    monkeypatch.setattr(loop, "write_report", lambda path, *_: Path(path).write_bytes(b"report"))


def test_a_recipe_sets_what_is_not_given(store: ActivationStore, tmp_path: Path) -> None:
    words = ["--store", str(store.path), "--out", str(tmp_path / "run"), "--d-sae", "600", "--recipe", "batch_topk"]
    config, _ = load_job("train", words)
    assert (config.sparsity, config.batch_size, config.fit.lr) == (BatchTopK(k=32, k_aux=512), 4096, 3e-4)
    config, _ = load_job("train", [*words, "--batch-size", "64", "--lr", "1e-3", "batch-top-k", "--k", "4"])
    assert (config.sparsity, config.batch_size, config.fit.lr) == (BatchTopK(k=4, k_aux=512), 64, 1e-3)
    assert config.fit.betas == (0.9, 0.99)
    config, _ = load_job("train", [*words, "--batch-size", "4096", "--decoder-norm", "auto", "relu"])
    assert (config.sparsity, config.decoder_norm) == (Relu(), "auto")


def test_a_raw_recipe_takes_the_norm_of_the_store(store: ActivationStore, tmp_path: Path) -> None:
    config = recipe_config("cunningham_l1", store=store.path, out=tmp_path / "run", d_sae=16, n_tokens=640, seed=3)
    d_in = store.d_model("layers.1")
    assert config.sparsity.l1 == pytest.approx(8.577e-4 * d_in * (d_in / store.moments("layers.1")[1]) ** 0.5)
    assert config.seed == 3
    run(replace(config, fit=replace(config.fit, progress=False)))
    assert load_autoencoder(tmp_path / "run/checkpoint").config.sparsity == config.sparsity


def test_a_recipe_that_was_not_filled_in_is_refused(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe_config\('gao_topk'"):
        run(TrainConfig(recipe="gao_topk", store=store.path, out=tmp_path / "run", d_sae=16))
    with pytest.raises(ConfigError, match="and absent is none"):
        recipe_config("gao_topk", store=Path("absent"), out=tmp_path / "run", d_sae=16)
    assert set(RECIPES) == set(typing.get_args(RecipeName))


def test_latents_start_from_rows_of_the_store(store: ActivationStore, tmp_path: Path) -> None:
    config = TrainConfig(
        store=store.path,
        out=tmp_path / "run",
        d_sae=32,
        sparsity=Relu(),
        n_tokens=128,
        batch_size=64,
        start_from_data=1.0,
        fit=FitConfig(lr=1e-9, progress=False),
    )
    run(config)
    sae = load_autoencoder(tmp_path / "run/checkpoint")
    assert isinstance(sae, SparseAutoencoder)
    x = store.rows(0, store.n_rows, "layers.1").float() - sae.input_mean
    cosines = torch.nn.functional.normalize(x) @ sae.W_dec.detach().T
    assert float(cosines.max(0).values.min()) > 0.999


def test_the_help_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_job("train", ["--help"])
    text = capsys.readouterr().out
    assert [name for name in RECIPES if name not in text] == []


def test_the_decoder_bias_starts_at_the_geometric_median_of_the_store(store: ActivationStore, tmp_path: Path) -> None:
    fit = FitConfig(lr=1e-9, progress=False)
    fields = {"store": store.path, "out": tmp_path / "run", "d_sae": 64, "n_tokens": 128, "batch_size": 64, "fit": fit}
    run(recipe_config("gao_topk", **fields, held_out_share=0.0))
    sae = load_autoencoder(tmp_path / "run/checkpoint")
    assert isinstance(sae, SparseAutoencoder)
    x = store.rows(0, store.n_rows, "layers.1").double()
    points = sae.decode(torch.zeros(1, 64))[0].detach(), sae.input_mean
    distances = [float((x - point).norm(dim=1).sum()) for point in points]
    assert distances[0] < distances[1]


def test_the_page_of_recipes_has_them_all() -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for recipe in RECIPES.values():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{recipe.name}` |")]
        assert recipe.summary in row
        assert recipe.source in row
        assert f"{recipe.n_tokens:,}" in row
        assert f"{recipe.batch_size:,}" in row
        assert f"`{recipe.name}`: {recipe.differs}." in " ".join(page.split())
