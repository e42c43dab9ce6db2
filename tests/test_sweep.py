"""Sweeps: which autoencoders a grid makes, that they train as they would alone, and what is written at the end."""

import json
from pathlib import Path

import pytest
import torch

from saekit.autoencoders import KLDivergence, Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK, load_autoencoder
from saekit.cli import main
from saekit.errors import ConfigError
from saekit.training.sweep import label_of, pareto_front, parse_axes, sweep_configs
from tests.stores import make_tiny_store

BASE = SparseAutoencoderConfig(d_in=16, d_sae=32, sparsity=TopK(k=4))


def test_a_grid_is_every_combination_the_last_axis_fastest() -> None:
    points = sweep_configs(BASE, parse_axes(["k=2,4", "expansion=1,3"]))
    assert [settings for settings, _ in points] == [
        {"k": 2, "expansion": 1}, {"k": 2, "expansion": 3}, {"k": 4, "expansion": 1}, {"k": 4, "expansion": 3},
    ]  # fmt: skip
    assert [(config.sparsity.k, config.d_sae) for _, config in points] == [(2, 16), (2, 48), (4, 16), (4, 48)]


def test_fields_of_any_sparsity_can_be_swept() -> None:
    relu = SparseAutoencoderConfig(d_in=16, d_sae=32, sparsity=Relu())
    assert [c.sparsity.l1 for _, c in sweep_configs(relu, parse_axes(["l1=0.5,1e1"]))] == [0.5, 10.0]
    kl = SparseAutoencoderConfig(d_in=16, d_sae=32, sparsity=KLDivergence())
    assert [c.sparsity.rho for _, c in sweep_configs(kl, parse_axes(["rho=.01,.1"]))] == [0.01, 0.1]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["k"], "NAME=NUMBER,NUMBER"),
        (["k=1,two"], "NAME=NUMBER,NUMBER"),
        (["k=nan"], "NAME=NUMBER,NUMBER"),
        (["k=1", "k=2"], "names 'k' twice"),
        (["k=4,4"], "holds a value twice"),
        (["l1=1,2"], r"TopK has k, auxk.* Closest: "),
        (["d_sae=8,16", "expansion=2"], "not over both"),
        (["seed=0.5"], "takes whole numbers"),
        (["k=33"], "exceeds d_sae=32"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        sweep_configs(BASE, parse_axes(words))


def test_the_front_is_what_no_other_point_beats() -> None:
    points = [{"l0": l0, "fvu": fvu} for l0, fvu in [(8, 0.5), (4, 0.6), (16, 0.4), (9, 0.55), (16, 0.45)]]
    assert [point["l0"] for point in pareto_front(points)] == [4, 8, 16]
    assert label_of({"k": 32, "l1": 0.5}) == "k 32, l1 0.5"


def test_a_swept_autoencoder_is_the_one_trained_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_store(tmp_path / "store")
    words = ["train", "--store", f"{tmp_path}/store", "--batch-size", "32", "--device", "cpu", "--no-progress"]
    sweep = ["--out", f"{tmp_path}/sweep", "--sweep", "k=2,4", "--sweep", "d_sae=16,24"]
    assert main([*words, *sweep, "top-k", "--k", "2"]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert len(written["points"]) == 4
    assert all(f"{point['fvu']:.4f}" in printed for point in written["points"])
    assert (tmp_path / "sweep" / "pareto.png").stat().st_size > 5_000
    assert main([*words, "--out", f"{tmp_path}/alone", "--d-sae", "24", "top-k", "--k", "4"]) == 0
    alone = load_autoencoder(tmp_path / "alone" / "checkpoint")
    swept = load_autoencoder(tmp_path / "sweep" / written["points"][3]["checkpoint"])
    assert isinstance(alone, SparseAutoencoder)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, swept.state_dict()[name]), name


def test_a_finished_sweep_given_again_trains_nothing_and_prints_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_store(tmp_path / "store")
    words = ["train", "--store", f"{tmp_path}/store", "--out", f"{tmp_path}/run", "--batch-size", "32", "--device"]
    words += ["cpu", "--no-progress", "--d-sae", "24", "--sweep", "l1=1,4", "relu"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main(words) == 0
    again = capsys.readouterr().out
    assert "nothing was trained" in again
    assert first in again
