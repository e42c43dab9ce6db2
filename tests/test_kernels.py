"""The sparse step against dense autograd: values, gradients, edge cases, memory, and the choice between the two."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from saekit.errors import ConfigError
from saekit.kernels import StepChooser, Weights, active, cpu, dense, reference, row_dots
from saekit.kernels.buffers import GradientBuffers

D_IN, D_SAE, N_ROWS = 12, 300, 40


def make_weights(d_in: int = D_IN, d_sae: int = D_SAE, dtype: torch.dtype = torch.float64, bias: float = -1) -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = Weights((d_sae, d_in), (d_sae,), (d_sae, d_in), (d_in,))
    W_enc_T, b_enc, W_dec, b_dec = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return Weights(*(t.requires_grad_() for t in (W_enc_T / d_in**0.5, 0.3 * b_enc + bias, W_dec, 0.2 * b_dec)))


def make_batch(n_rows: int = N_ROWS, d_in: int = D_IN, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(1), dtype=dtype)


def dead_third(d_sae: int = D_SAE) -> Tensor:
    return torch.arange(d_sae) % 3 == 0


def dense_relu(x: Tensor, weights: Weights, weigh: bool) -> reference.Step:
    return reference.relu_step(x, reference.pre_activations(x, weights), weights, weigh)


def dense_topk(x: Tensor, weights: Weights, k: int, k_aux: int, is_dead: Tensor) -> reference.Step:
    return reference.topk_step(x, reference.pre_activations(x, weights), weights, k, k_aux, is_dead)


def gradients(step: reference.Step, weights: Weights) -> tuple[Tensor, ...]:
    return torch.autograd.grad(1.3 * step.reconstruction + 0.7 * step.penalty, weights)


def assert_same_step(found: reference.Step, expected: reference.Step, weights: Weights, tolerance: float) -> None:
    of_found, of_expected = gradients(found, weights), gradients(expected, weights)
    for name, a, b in zip(Weights._fields, of_found, of_expected, strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max())), name
    for name in ("reconstruction", "penalty"):
        a, b = (float(getattr(step, name).detach()) for step in (found, expected))
        assert a == pytest.approx(b, rel=tolerance), name
    torch.testing.assert_close(found.x_hat, expected.x_hat, rtol=0, atol=tolerance * 10)
    torch.testing.assert_close(
        found.latents.to_dense(len(weights.b_enc)), expected.latents, rtol=0, atol=tolerance * 10
    )
    assert torch.equal(found.n_fired, expected.n_fired)


@pytest.fixture(params=["one block", "ragged blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "ragged blocks":
        monkeypatch.setattr(active, "_BLOCK_ENTRIES", 1)
        assert D_SAE % 256 > 0  # the least width of a block


@pytest.mark.parametrize("weigh", [False, True])
def test_sparse_relu_step_equals_dense_autograd(weigh, blocks):
    x, weights = make_batch(), make_weights()
    assert_same_step(cpu.relu_step(x, weights, weigh), dense_relu(x, weights, weigh), weights, 1e-13)


@pytest.mark.parametrize(("k", "k_aux"), [(1, 0), (5, 6), (5, 1000), (290, 7), (D_SAE, 1)])
def test_sparse_topk_step_equals_dense_autograd(k, k_aux, blocks):
    x, weights, is_dead = make_batch(), make_weights(), dead_third()
    found = cpu.topk_step(x, weights, k, k_aux, is_dead)
    assert_same_step(found, dense_topk(x, weights, k, k_aux, is_dead), weights, 1e-13)


def test_sparse_steps_hold_when_nothing_is_active():
    x, weights = make_batch(), make_weights(bias=-100)
    assert_same_step(cpu.relu_step(x, weights, True), dense_relu(x, weights, True), weights, 1e-13)
    found = cpu.topk_step(x, weights, 4, 5, dead_third())
    assert_same_step(found, dense_topk(x, weights, 4, 5, dead_third()), weights, 1e-13)


def test_sparse_steps_in_float32_at_full_width_equal_dense_autograd():
    weights, x = make_weights(768, 24576, torch.float32, bias=-2.7), make_batch(16, 768, torch.float32)
    found = cpu.relu_step(x, weights, True)
    assert 20 < found.n_fired.sum() / 16 < 200
    assert_same_step(found, dense_relu(x, weights, True), weights, 1e-5)
    is_dead = torch.arange(24576) % 50 == 0
    found = cpu.topk_step(x, weights, 32, 384, is_dead)
    assert_same_step(found, dense_topk(x, weights, 32, 384, is_dead), weights, 1e-5)


@pytest.mark.parametrize("penalty", ["relu", "relu weighted", "topk"])
def test_gradients_of_the_sparse_steps_are_their_slopes(penalty):
    x, weights = make_batch(6, 4), make_weights(4, 30, bias=0)
    nobody = torch.zeros(30, dtype=torch.bool)

    def losses(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        w = Weights(*parameters)
        step = cpu.topk_step(x, w, 3, 0, nobody) if penalty == "topk" else cpu.relu_step(x, w, "weighted" in penalty)
        assert step is not None
        return step.reconstruction, step.penalty

    assert torch.autograd.gradcheck(losses, tuple(weights))


def test_gradients_of_auxk_are_its_slopes_at_a_fixed_target_and_reach_every_parameter():
    x, weights, error = make_batch(6, 4), make_weights(4, 30, bias=0), make_batch(6, 4) * 0.5

    def loss(*parameters: Tensor) -> Tensor:
        w = Weights(*parameters)
        return reference.auxk(error, reference.pre_activations(x, w), w, 3, dead_third(30))

    assert torch.autograd.gradcheck(loss, tuple(weights))
    step = cpu.topk_step(x, weights, 3, 3, dead_third(30))
    of_auxk = torch.autograd.grad(step.penalty, weights)
    assert all(float(gradient.abs().max()) > 0 for gradient in of_auxk)
    assert float(of_auxk[0][~dead_third(30)].abs().max()) == 0


def test_dense_encoder_equals_the_reference_and_its_gradients_are_slopes():
    x, weights = make_batch(6, 4).requires_grad_(), make_weights(4, 30)
    torch.testing.assert_close(dense.pre_activations(x, weights), reference.pre_activations(x, weights))

    def product(x: Tensor, W_enc_T: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
        return dense.pre_activations(x, Weights(W_enc_T, b_enc, weights.W_dec, b_dec))

    assert torch.autograd.gradcheck(product, (x, weights.W_enc_T, weights.b_enc, weights.b_dec))


def test_dense_encoder_follows_autocast():
    x, weights = make_batch(dtype=torch.float32), make_weights(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pre_acts = dense.pre_activations(x, weights)
        loss = pre_acts.square().mean()
    assert pre_acts.dtype == torch.bfloat16
    found = torch.autograd.grad(loss, (weights.W_enc_T, weights.b_enc, weights.b_dec))
    exact = torch.autograd.grad(
        reference.pre_activations(x, weights).square().mean(), (weights.W_enc_T, weights.b_enc, weights.b_dec)
    )
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 0.02


ROWS = {
    "random": np.random.default_rng(0).standard_normal((30, 700)),
    "all equal": np.ones((3, 700)),
    "all negative": -np.arange(1.0, 2101).reshape(3, 700),
    "all zero": np.zeros((3, 700)),
    "few positive": np.where(np.arange(700) % 350 == 3, 2.0, -1.0) * np.ones((4, 1)),
    "large ones in one class": np.where(np.arange(700) % 8 == 3, np.arange(700), -1.0) * np.ones((2, 1)),
    "no rows": np.zeros((0, 700)),
}


@pytest.mark.parametrize("k", [1, 7, 64, 699, 700])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_active_topk_keeps_the_largest_values_of_every_row(rows, k, blocks):
    pre_acts = torch.from_numpy(rows)
    identity = Weights(
        torch.eye(700, dtype=torch.float64), torch.zeros(700, dtype=torch.float64), *[torch.zeros(1)] * 2
    )
    found = active.active_topk(pre_acts, identity, k).to_dense(700)
    expected = pre_acts.topk(k, dim=1).values.relu()
    assert torch.equal(found.topk(k, dim=1).values, expected)
    assert torch.equal(found > 0, (found == pre_acts) & (found > 0))
    assert int((found > 0).sum(1).max() if len(rows) else 0) <= k


def test_nan_activations_make_the_loss_nan():
    x, weights = make_batch(), make_weights()
    x[3, 2] = torch.nan
    assert cpu.relu_step(x, weights, False).reconstruction.isnan()
    assert cpu.topk_step(x, weights, 5, 5, dead_third()).reconstruction.isnan()


def test_second_derivatives_are_refused():
    x, weights = make_batch(), make_weights()
    for step in (cpu.relu_step(x, weights, False), cpu.topk_step(x, weights, 5, 0, dead_third())):
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            torch.autograd.grad(step.reconstruction, weights.W_dec, create_graph=True)


def test_gradient_memory_is_used_again_once_nobody_holds_it():
    weights, x, buffers = make_weights(), make_batch(), GradientBuffers()

    def step_and_forget() -> int:
        weights.W_dec.grad = None
        cpu.relu_step(x, weights, False, buffers=buffers).reconstruction.backward()
        buffers.keep(weights.W_dec.grad)
        return weights.W_dec.grad.data_ptr()

    first = step_and_forget()
    assert step_and_forget() == first
    held = weights.W_dec.grad.view(-1)
    expected = held.clone()
    assert step_and_forget() != first
    assert torch.equal(held, expected)


def test_gradients_of_two_backward_passes_add_up():
    weights, x, buffers = make_weights(), make_batch(), GradientBuffers()
    for _ in range(3):
        cpu.relu_step(x, weights, False, buffers=buffers).reconstruction.backward()
        for parameter in weights:
            buffers.keep(parameter.grad)
    once = torch.autograd.grad(cpu.relu_step(x, weights, False).reconstruction, weights)
    for parameter, gradient in zip(weights, once, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * gradient)


def test_the_chooser_follows_the_density_and_says_so(caplog):
    chooser, x = StepChooser(max_density=0.1), make_batch()
    many, few = make_weights(bias=0), make_weights(bias=-3)
    with caplog.at_level(logging.INFO, logger="saekit.kernels"):
        steps = [chooser.relu_step(x, weights, False) for weights in (many, many, few, few, many)]
    assert [isinstance(step.latents, Tensor) for step in steps] == [True, True, False, False, True]
    assert [record.getMessage().split(" path")[0] for record in caplog.records] == [
        "Training takes the dense",
        "Training takes the sparse",
        "Training takes the dense",
    ]
    assert isinstance(chooser.topk_step(x, many, 30, 4, dead_third()).latents, tuple)
    assert isinstance(chooser.topk_step(x, many, 31, 4, dead_third()).latents, Tensor)


def test_a_forced_path_is_taken_whatever_the_density():
    x, weights = make_batch(), make_weights(bias=0)
    assert isinstance(StepChooser("dense", max_density=1.0).relu_step(x, weights, False).latents, Tensor)
    assert isinstance(StepChooser("sparse", max_density=0.0).relu_step(x, weights, False).latents, tuple)
    assert isinstance(StepChooser("sparse", max_density=0.0).topk_step(x, weights, 9, 0, dead_third()).latents, tuple)


def test_what_the_sparse_step_cannot_do_is_dense_by_choice_and_an_error_by_force():
    x, weights = make_batch(), make_weights()
    half = Weights(*(w.detach().bfloat16().requires_grad_() for w in weights))
    assert isinstance(StepChooser().relu_step(x.bfloat16(), half, False).latents, Tensor)
    with pytest.raises(ConfigError, match="float32 or float64"):
        StepChooser("sparse").relu_step(x.bfloat16(), half, False)
    with torch.autocast("cpu"), pytest.raises(ConfigError, match="autocast"):
        StepChooser("sparse").relu_step(x, weights, False)
    x.requires_grad_()
    with pytest.raises(ConfigError, match="gradient of its input"):
        StepChooser("sparse").relu_step(x, weights, False)
    (found,) = torch.autograd.grad(StepChooser().relu_step(x, weights, False).reconstruction, x)
    (expected,) = torch.autograd.grad(dense_relu(x, weights, False).reconstruction, x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_row_dots_are_the_dot_products_of_rows(dtype):
    a, b = make_batch(30, 8).to(dtype), make_weights(8, 30).W_dec.detach().to(dtype)
    torch.testing.assert_close(row_dots(a, b), (a * b).sum(1))


def test_a_copied_chooser_shares_no_memory():
    chooser = StepChooser("dense", max_density=0.5)
    other = copy.deepcopy(chooser)
    assert (other.path, other.max_density) == ("dense", 0.5)
    assert other.buffers is not chooser.buffers
