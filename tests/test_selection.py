"""Active entries found with the help of bf16 are those found in float32."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from saekit.autoencoders import Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.errors import ConfigError
from saekit.kernels import StepChooser, Weights, active, bf16_selection, selection
from saekit.kernels.types import SparseLatents
from saekit.training import FitConfig, fit, optim

D_IN, D_SAE, N_ROWS = 32, 900, 50


def make_weights(scale: float = 1.0, bias: float = -1.5) -> Weights:
    generator = torch.Generator().manual_seed(0)
    W = scale * torch.randn(D_SAE, D_IN, generator=generator) / D_IN**0.5
    b_enc = bias + 0.3 * torch.randn(D_SAE, generator=generator)
    return Weights(W, b_enc, W.clone(), torch.zeros(D_IN))


def make_batch(scale: float = 1.0) -> Tensor:
    rows = torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(1))
    return rows * scale * torch.linspace(0.1, 3, N_ROWS)[:, None]


def assert_same(found: SparseLatents | None, expected: SparseLatents | None) -> None:
    assert found is not None
    assert expected is not None
    assert len(expected.values) > 0
    assert torch.equal(found.row_offsets, expected.row_offsets)
    assert torch.equal(found.latents, expected.latents)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("bias", [-4.0, -1.5, 0.0, 1.0])
def test_entries_found_with_bf16_are_those_of_float32(scale, bias):
    x, weights = make_batch(scale), make_weights(scale=1 / scale, bias=bias)
    floors = torch.rand(D_SAE, generator=torch.Generator().manual_seed(2)) - 0.3
    with bf16_selection():
        found = selection.active_relu(x, weights)
        above = selection.active_above(x, weights, floors)
        topk = [selection.active_topk(x, weights, k) for k in (1, 7, 60)]
        of_batch = selection.active_batch_topk(x, weights, 200, guess=0.5)
    assert_same(found, active.active_relu(x, weights))
    assert_same(above, active.active_above(x, weights, floors))
    for k, one in zip((1, 7, 60), topk, strict=True):
        assert_same(one, active.active_topk(x, weights, k))
    assert_same(of_batch, active.active_batch_topk(x, weights, 200))


def test_the_bounds_in_bf16_are_above_every_entry_and_not_far_above():
    x, weights = make_batch(), make_weights()
    product = selection._Product(x, weights, torch.zeros(D_SAE))
    bounds = torch.cat([block.float() for _, block in product.blocks()], dim=1)
    exact = x.double() @ weights.W_enc_T.double().T + weights.b_enc.double()
    # What rounds to a number is no smaller than what rounds to a smaller one.
    assert bool((bounds >= exact.bfloat16().float()).all())
    assert bool((bounds - exact <= product.raised_by_at_most).all())
    assert float((bounds - exact).abs().max()) > 1e-3


def test_rounding_alone_would_miss_entries(monkeypatch):
    monkeypatch.setattr(selection, "_SLACK", 0.0)
    x, weights = make_batch(3), make_weights()
    with bf16_selection():
        found = selection.active_relu(x, weights)
    expected = active.active_relu(x, weights)
    assert found is not None
    assert expected is not None
    missed = np.setdiff1d(expected.rows() * D_SAE + expected.latents, found.rows() * D_SAE + found.latents)
    assert len(missed) > 0


def test_too_many_candidates_are_a_case_for_the_dense_path():
    with bf16_selection():
        assert selection.active_relu(make_batch(), make_weights(bias=3.0), max_density=0.2) is None


def test_the_chooser_follows_the_switch_in_float32_and_leaves_float64_alone(monkeypatch):
    asked = []
    original = selection._refined
    monkeypatch.setattr(selection, "_refined", lambda *words: asked.append(1) or original(*words))
    weights = Weights(*(part.requires_grad_() for part in make_weights()))
    with bf16_selection():
        inside = StepChooser("sparse").relu_step(make_batch(), weights, True)
        StepChooser("sparse").relu_step(make_batch().double(), Weights(*(p.double() for p in weights)), True)
    assert len(asked) == 1
    outside = StepChooser("sparse").relu_step(make_batch(), weights, True)
    assert len(asked) == 1
    assert inside.reconstruction.item() == pytest.approx(outside.reconstruction.item(), rel=1e-5)


@pytest.mark.parametrize("sparsity", [Relu(l1=0.5), TopK(k=4)], ids=lambda spec: type(spec).__name__)
def test_training_with_bf16_selection_comes_to_the_same_weights(sparsity, caplog, monkeypatch):
    monkeypatch.setattr(optim, "cpu_has_bf16", lambda: False)
    weights = []
    for precision in ("fp32", "bf16_select"):
        config = SparseAutoencoderConfig(d_in=D_IN, d_sae=D_SAE, sparsity=sparsity, kernel="sparse")
        sae = SparseAutoencoder(config)
        with caplog.at_level(logging.WARNING, logger="saekit.training"):
            fit([sae], [make_batch()], FitConfig(lr=1e-3, precision=precision, progress=False), n_tokens=20 * N_ROWS)
        weights.append(sae.W_dec.detach())
    assert float((weights[0] - weights[1]).norm() / weights[0].norm()) < 1e-4
    assert ["no bf16 instructions" in record.getMessage() for record in caplog.records] == [True]


def test_bf16_selection_is_refused_on_other_devices():
    with pytest.raises(ConfigError, match="on the CPU only"):
        optim.resolve_precision("bf16_select", torch.device("cuda"))
