"""The steps that are written once for every sparsity: sparse entries against all of them, slopes, and selection."""

import numpy as np
import pytest
import torch
from test_kernels import assert_same_step, blocks, dead_third, make_batch, make_weights  # noqa: F401
from torch import Tensor

import saekit as sk
from saekit.autoencoders.initial import geometric_median, start_bias_at_median_, start_from_data_
from saekit.autoencoders.sparsity.base import Sparsifier, StepState
from saekit.autoencoders.sparsity.jump_relu import jump
from saekit.kernels import StepChooser, Weights, active, cpu, reference

D_IN, D_SAE = 12, 300
SPECS = {
    "BatchTopK": sk.BatchTopK(k=6, auxk=0.5),
    "MatryoshkaBatchTopK": sk.MatryoshkaBatchTopK(k=6, auxk=0.5, prefix_shares=(0.1, 0.5)),
    "step": sk.JumpRelu(threshold=0.3, bandwidth=0.4, pre_act=0.2),
    "tanh": sk.JumpRelu(loss="tanh", threshold=0.3, bandwidth=0.4, ste_to_input=True),
    "quadratic": sk.JumpRelu(loss="quadratic", target=5.0, threshold=0.3, bandwidth=0.4),
    "Gated": sk.Gated(),
    "PAnneal": sk.PAnneal(),
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def build(spec, d_sae: int = D_SAE) -> Sparsifier:
    sparsifier = spec.build(d_sae).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sparsifier.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    sparsifier.project_()
    sparsifier.set_progress_(0.5)
    return sparsifier


def run(spec, x: Tensor, weights: Weights, is_dead: Tensor, is_free: bool, path: str) -> tuple[Tensor, list[Tensor]]:
    """Losses and penalties, and the gradients of their sum in the weights and the sparsity's own parameters."""
    sparsifier = build(spec, len(is_dead))
    state = StepState(is_dead, torch.tensor(0.7, dtype=x.dtype), is_free, StepChooser(path))
    step, penalties = sparsifier.training_step(x, weights, state)
    assert isinstance(step.latents, Tensor) == (path == "dense")
    terms = torch.stack([step.reconstruction, *penalties.values()])
    parameters = [*weights, *sparsifier.parameters()]
    found = torch.autograd.grad(terms.sum(), parameters, allow_unused=True)
    latents = step.latents if isinstance(step.latents, Tensor) else step.latents.to_dense(len(is_dead))
    return terms.detach(), [*found, latents, step.x_hat, step.n_fired, *sparsifier.buffers()]


@pytest.mark.parametrize("is_free", [False, True])
@specs
def test_a_step_on_the_entries_that_matter_equals_one_on_all_of_them(spec, is_free, blocks):  # noqa: F811
    x, weights = make_batch(), make_weights()
    dense, sparse = (run(spec, x, weights, dead_third(), is_free, path) for path in ("dense", "sparse"))
    torch.testing.assert_close(sparse[0], dense[0], rtol=1e-12, atol=1e-12)
    for a, b in zip(sparse[1], dense[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@specs
def test_a_step_on_entries_holds_when_nothing_is_active(spec):
    x, weights, nobody = make_batch(), make_weights(bias=-100), torch.zeros(D_SAE, dtype=torch.bool)
    dense, sparse = (run(spec, x, weights, nobody, True, path) for path in ("dense", "sparse"))
    for a, b in zip(sparse[1], dense[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert int(sparse[1][-1].sum() if spec == SPECS["Gated"] else 0) == 0


@pytest.mark.parametrize("name", ["MatryoshkaBatchTopK", "PAnneal", "Gated"])
def test_gradients_of_a_step_on_entries_are_its_slopes(name):
    x, weights = make_batch(6, 4), make_weights(4, 30, bias=0)
    sparsifier = build(SPECS[name], 30)
    state = StepState(torch.zeros(30, dtype=torch.bool), torch.ones((), dtype=x.dtype), True, StepChooser("sparse"))
    # Gated's auxiliary loss stops its gradient at the decoder.
    n_checked = 2 if name == "Gated" else 4

    def losses(*parameters: Tensor) -> Tensor:
        w = Weights(*parameters, *(weight.detach() for weight in weights[n_checked:]))
        step, penalties = sparsifier.training_step(x, w, state)
        return torch.stack([step.reconstruction, *penalties.values()]).sum()

    assert torch.autograd.gradcheck(losses, tuple(weights)[:n_checked], fast_mode=True)


def test_jump_has_the_gradients_of_its_equations():
    pre_acts = torch.tensor([[0.05, 0.32, 0.38, 0.9]], dtype=torch.float64, requires_grad=True)
    threshold = torch.full((4,), 0.35, dtype=torch.float64, requires_grad=True)
    for ste_to_input in (False, True):
        latents, is_on = jump(pre_acts, threshold, 0.2, ste_to_input)
        assert latents.tolist() == [[0, 0, 0.38, 0.9]]
        assert is_on.tolist() == [[0, 0, 1, 1]]
        in_window = torch.tensor([0.0, 1, 1, 0], dtype=torch.float64)
        of_pre, of_threshold = torch.autograd.grad(latents.sum(), (pre_acts, threshold), retain_graph=True)
        torch.testing.assert_close(of_threshold, -0.35 / 0.2 * in_window)
        smooth = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64)
        torch.testing.assert_close(of_pre, smooth + ste_to_input * 0.35 / 0.2 * in_window)
        of_pre, of_threshold = torch.autograd.grad(is_on.sum(), (pre_acts, threshold), allow_unused=True)
        torch.testing.assert_close(of_threshold, -in_window / 0.2)
        assert (of_pre is None) != ste_to_input


def test_jump_relu_thresholds_move_l0_to_its_target():
    x, weights = make_batch(200), make_weights(bias=0)
    sparsifier = build(sk.JumpRelu(loss="quadratic", target=20.0, threshold=0.1, bandwidth=0.3))
    optimizer = torch.optim.Adam(sparsifier.parameters(), lr=0.05)
    held = Weights(*(w.detach() for w in weights))
    state = StepState(torch.zeros(D_SAE, dtype=torch.bool), torch.ones((), dtype=x.dtype), False, StepChooser("dense"))
    for _ in range(150):
        optimizer.zero_grad()
        step, penalties = sparsifier.training_step(x, held, state)
        penalties["l0_loss"].backward()
        optimizer.step()
        sparsifier.project_()
    assert float(step.n_fired.sum()) / 200 == pytest.approx(20, abs=3)
    assert float(sparsifier.threshold.detach().min()) >= 0


@pytest.mark.parametrize("guess", [0.0, 0.5, 1.0, 50.0])
@pytest.mark.parametrize("n", [1, 40, 700, 40 * 300])
def test_the_largest_of_a_batch_do_not_depend_on_the_guess(n, guess, blocks):  # noqa: F811
    x, weights = make_batch(), make_weights(bias=0)
    found = active.active_batch_topk(x - weights.b_dec.detach(), weights, n, guess).to_dense(D_SAE)
    expected = reference.batch_topk_latents(reference.pre_activations(x, weights), n).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_ties_at_the_last_place_of_a_batch_are_cut():
    identity = Weights(torch.eye(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64), *[torch.zeros(1)] * 2)
    found = active.active_batch_topk(torch.ones(5, 8, dtype=torch.float64), identity, 12, 0.9)
    assert len(found.values) == 12
    assert found.row_offsets.diff().sum() == 12


def test_entries_above_a_floor_are_those_of_the_dense_product(blocks):  # noqa: F811
    x, weights = make_batch(), make_weights(bias=0)
    floors = torch.linspace(-0.5, 1.5, D_SAE, dtype=torch.float64)
    pre_acts = reference.pre_activations(x, weights).detach()
    found = active.active_above(x - weights.b_dec.detach(), weights, floors)
    torch.testing.assert_close(found.to_dense(D_SAE), torch.where(pre_acts > floors, pre_acts, 0), rtol=0, atol=1e-12)
    assert active.active_above(x - weights.b_dec.detach(), weights, floors, max_density=0.1) is None


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_the_threshold_of_batch_topk_follows_the_smallest_activation_of_batches(path):
    config = sk.SparseAutoencoderConfig(d_in=D_IN, d_sae=D_SAE, sparsity=sk.BatchTopK(k=4), kernel=path)
    sae = sk.SparseAutoencoder(config)
    expected = 0.0
    for seed in range(5):
        x = torch.randn(32, D_IN, generator=torch.Generator().manual_seed(seed))
        pre_acts = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
        smallest = float(pre_acts.flatten().topk(4 * 32).values[-1])
        expected += 10 / (seed + 10) * (smallest - expected)
        sae.training_loss(x)
    assert float(sae.sparsifier.threshold) == pytest.approx(expected, rel=1e-5)
    assert int(sae.sparsifier.n_batches) == 5
    l0 = float((sae.encode(torch.randn(2000, D_IN)) > 0).sum(1).float().mean())
    assert l0 == pytest.approx(4, rel=0.15)


def test_k_falls_to_its_last_value_and_is_kept_in_a_checkpoint(tmp_path):
    sae = sk.SparseAutoencoder(
        sk.SparseAutoencoderConfig(d_in=D_IN, d_sae=D_SAE, sparsity=sk.TopK(k=4, k_start=24, k_anneal_fraction=0.5))
    )
    l0 = []
    for share in (0.0, 0.25, 0.5, 0.9):
        sae.set_progress_(share)
        l0.append(float(sae.training_loss(make_batch(dtype=torch.float32)).terms["l0"]))
        if share == 0.25:
            sae.save(tmp_path)
    assert l0 == [24, 14, 4, 4]
    loaded = sk.load_autoencoder(tmp_path)
    assert int((loaded.encode(make_batch(dtype=torch.float32)) > 0).sum(1).max()) == 14


def test_p_falls_while_the_penalty_keeps_its_value():
    sae = sk.SparseAutoencoder(
        sk.SparseAutoencoderConfig(
            d_in=D_IN, d_sae=D_SAE, sparsity=sk.PAnneal(weight=2.0, p_end=0.2, anneal_from=0.5, n_updates=4)
        )
    )
    x = make_batch(dtype=torch.float32)
    terms, exponents = [], []
    for share in (0.0, 0.2, 0.49, 0.5, 0.63, 0.76, 0.9, 0.99):
        sae.set_progress_(share)
        exponents.append(round(float(sae.sparsifier.p(sae.sparsifier.n_updates_done)), 6))
        terms.append(float(sae.training_loss(x).terms["lp"]))
    assert exponents == [1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]
    assert terms == pytest.approx([terms[0]] * 8, rel=1e-5)
    assert float(sae.sparsifier.factor) != 1


def test_a_target_l0_steers_the_penalty_of_a_trained_dictionary():
    config = sk.SparseAutoencoderConfig(d_in=D_IN, d_sae=64, sparsity=sk.Relu(l1=0.2), target_l0=6.0)
    sae = sk.SparseAutoencoder(config)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(30, D_IN, generator=generator)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    l0 = []
    for _ in range(600):
        on = (torch.rand(128, 30, generator=generator) < 0.1) * torch.rand(128, 30, generator=generator)
        optimizer.zero_grad()
        loss = sae.training_loss(on @ basis)
        loss.total.backward()
        optimizer.step()
        sae.project_()
        l0.append(float(loss.terms["l0"]))
    assert np.mean(l0[-50:]) == pytest.approx(6, abs=0.8)
    assert float(sae.penalty_factor) > 1.2
    with pytest.raises(sk.ConfigError, match="no penalty to steer in TopK"):
        sk.SparseAutoencoderConfig(d_in=4, d_sae=8, sparsity=sk.TopK(k=2), target_l0=3.0)


def test_latents_that_start_from_data_point_at_rows():
    sae = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=D_IN, d_sae=40, sparsity=sk.TopK(k=4)))
    x = 5 + torch.randn(100, D_IN, generator=torch.Generator().manual_seed(4))
    sae.set_input_moments_(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))
    start_from_data_(sae, x, blend=0.8)
    rows = torch.nn.functional.normalize(x - x.mean(0))
    nearest = (sae.W_dec.detach() @ rows.T).max(1)
    assert float(nearest.values.min()) > 0.9
    assert len(nearest.indices.unique()) == 40
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(sae.W_enc_T, sae.W_dec)


def test_the_geometric_median_has_the_least_sum_of_distances_and_heeds_no_outlier():
    x = torch.randn(501, D_IN, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x[0] = 1e6
    median = geometric_median(x)
    assert float(median.norm()) < 0.5

    def sum_of_distances(point: Tensor) -> float:
        return float((x - point).norm(dim=1).sum())

    for i in range(D_IN):
        step = 1e-3 * torch.eye(D_IN, dtype=torch.float64)[i]
        assert sum_of_distances(median) < min(sum_of_distances(median + step), sum_of_distances(median - step))
    sae = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=D_IN, d_sae=40, sparsity=sk.TopK(k=4)))
    sae.set_input_moments_(torch.full((D_IN,), 2.0), 3.0)
    start_bias_at_median_(sae, x.float())
    torch.testing.assert_close(sae.decode(torch.zeros(1, 40))[0].double().detach(), median, rtol=1e-3, atol=1e-3)


def test_step_with_batch_topk_is_the_reference_in_float32_at_full_width():
    weights, x = make_weights(768, 24576, torch.float32, bias=-2.7), make_batch(16, 768, torch.float32)
    is_dead = torch.arange(24576) % 50 == 0
    found = cpu.batch_topk_step(x, weights, 32 * 16, 384, is_dead, 0.5)
    expected = reference.batch_topk_step(x, reference.pre_activations(x, weights), weights, 32 * 16, 384, is_dead)
    assert_same_step(found, expected, weights, 1e-5)
