"""`SparseAutoencoder`: its scaling, its decoder, its dead latents, its errors, and KL at saturation."""

import copy
import math

import pytest
import torch
from torch import Tensor

import saekit as sk
from saekit.autoencoders.sparsity import KLDivergenceSparsifier


def make(sparsity=None, **settings) -> sk.SparseAutoencoder:
    settings = {"d_in": 8, "d_sae": 32, "sparsity": sparsity or sk.TopK(k=4)} | settings
    return sk.SparseAutoencoder(sk.SparseAutoencoderConfig(**settings))


def batch(n: int = 64, seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def train(sae: sk.SparseAutoencoder, n_steps: int = 5) -> None:
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    for i in range(n_steps):
        optimizer.zero_grad()
        sae.training_loss(batch(seed=i)).total.backward()
        sae.project_gradients_()
        optimizer.step()
        sae.project_()


def test_a_new_one_has_unit_decoder_rows_and_the_encoder_is_its_transpose():
    sae = make(seed=5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert not sae.b_dec.any()
    assert torch.equal(sae.W_dec, make(seed=5).W_dec)
    assert not torch.equal(sae.W_dec, make(seed=6).W_dec)


def test_encoder_and_decoder_share_no_memory():
    sae = make()
    with torch.no_grad():
        sae.W_dec.zero_()
    assert sae.W_enc.any()


def test_input_moments_bring_the_mean_squared_norm_to_d_in():
    sae, x = make(), batch(5000)
    mean = x.mean(0)
    sae.set_input_moments_(mean, float((x - mean).square().sum(1).mean()))
    fvu = sae.training_loss(x).terms["fvu"]
    normalized = (x - sae.input_mean) * sae.input_scale
    assert float(normalized.square().sum(1).mean()) == pytest.approx(8, rel=1e-5)
    expected = (x - sae(x).detach()).square().sum() / (x - mean).square().sum()
    assert float(fvu) == pytest.approx(float(expected), rel=1e-4)


def test_scaling_the_inputs_scales_the_outputs_and_leaves_latents_and_loss():
    sae, other, x = make(), make(), batch(500)
    mean, spread = x.mean(0), float((x - x.mean(0)).square().sum(1).mean())
    sae.set_input_moments_(mean, spread)
    other.set_input_moments_(100 * mean, 100**2 * spread)
    torch.testing.assert_close(other.encode(100 * x), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other(100 * x), 100 * sae(x), rtol=1e-4, atol=1e-2)
    a, b = (float(model.training_loss(rows).total.detach()) for model, rows in ((sae, x), (other, 100 * x)))
    assert b == pytest.approx(a, rel=1e-4)


def test_moments_that_cannot_be_used_are_refused():
    sae = make()
    with pytest.raises(sk.InputError, match=r"shape \[7\], expected \[8\]"):
        sae.set_input_moments_(torch.zeros(7), 1.0)
    for bad in (0.0, math.nan, math.inf, -1.0):
        with pytest.raises(sk.InputError, match="finite with a positive"):
            sae.set_input_moments_(torch.zeros(8), bad)
    with pytest.raises(sk.InputError, match="NaN"):
        sae.set_input_moments_(torch.full((8,), math.nan), 1.0)
    assert float(sae.input_scale) == 1


def test_activations_of_another_width_are_refused():
    with pytest.raises(sk.InputError, match="are 9 wide; this autoencoder takes 8"):
        make().encode(torch.zeros(3, 9))


@pytest.mark.parametrize("sparsity", [sk.Relu(), sk.TopK(k=4)])
def test_training_keeps_unit_decoder_rows_and_turns_them_only(sparsity):
    sae = make(sparsity)
    train(sae)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    sae.zero_grad()
    sae.training_loss(batch()).total.backward()
    before = (sae.W_dec.grad * sae.W_dec).sum(1).abs().max().item()
    sae.project_gradients_()
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max().item() < 1e-5 * before


def test_a_free_decoder_is_left_alone_and_its_norms_weigh_the_l1_penalty():
    sae = make(sk.Relu(l1=2.0), decoder_norm="free").double()
    train(sae)
    assert (sae.W_dec.norm(dim=1) - 1).abs().max().item() > 1e-3
    x = batch().double()
    before = sae.training_loss(x).terms
    with torch.no_grad():
        # The same function with rows twice as long: a penalty blind to the norms would halve.
        sae.W_dec *= 2
        sae.W_enc_T /= 2
        sae.b_enc /= 2
    after = sae.training_loss(x).terms
    assert float(after["l1"]) == pytest.approx(float(before["l1"]), rel=1e-9)
    assert float(after["reconstruction"]) == pytest.approx(float(before["reconstruction"]), rel=1e-9)


def test_auto_decoder_is_free_for_bounded_latents_alone():
    assert make(sk.KLDivergence()).decoder_is_free
    assert not make(sk.Relu()).decoder_is_free
    assert not make(sk.TopK(k=4)).decoder_is_free
    assert not make(sk.KLDivergence(), decoder_norm="unit").decoder_is_free


def test_latents_that_stay_silent_are_dead_after_so_many_tokens_and_live_again_when_they_fire():
    sae = make(sk.Relu(), dead_after_tokens=128)
    with torch.no_grad():
        sae.b_enc[:8] = -1000
    for expected in (0.0, 0.25, 0.25):
        assert float(sae.training_loss(batch()).terms["dead"]) == expected
    assert sae.is_dead.nonzero().view(-1).tolist() == list(range(8))
    with torch.no_grad():
        sae.b_enc[:8] = 0
    assert float(sae.training_loss(batch()).terms["dead"]) == 0


@pytest.mark.parametrize("kernel", ["dense", "sparse"])
def test_auxk_brings_dead_latents_back(kernel):
    def share_alive(auxk: float) -> float:
        sae = make(sk.TopK(k=2, auxk=auxk), dead_after_tokens=64, kernel=kernel)
        sae.set_input_moments_(torch.full((8,), 3.0), 32.0)
        with torch.no_grad():
            # Pre-activations too small to be among the two largest: silent for ever, unless AuxK finds a use for them.
            sae.W_enc_T[16:] *= 0.02
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
        for i in range(100):
            optimizer.zero_grad()
            sae.training_loss(batch(seed=i)).total.backward()
            sae.project_gradients_()
            optimizer.step()
            sae.project_()
        return float((sae.encode(batch(5000)) > 0).any(0).float().mean())

    assert share_alive(1.0) > share_alive(0.0) + 0.2


def test_more_active_latents_than_there_are_is_refused():
    with pytest.raises(sk.ConfigError) as caught:
        sk.SparseAutoencoderConfig(d_in=8, d_sae=32, sparsity=sk.TopK(k=64))
    assert str(caught.value) == "TopK.k=64 exceeds d_sae=32; lower k or raise d_sae."


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: make(d_in=0, d_sae=-1), "d_in=0 is not 1 or larger; d_sae=-1"),
        (lambda: make(sk.KLDivergence(), kernel="sparse"), "every latent of KLDivergence is active"),
        (lambda: sk.Relu(l1=-1.0), "Relu: l1=-1.0"),
        (lambda: sk.TopK(k=0, k_aux=0), "k=0 is not 1 or larger; k_aux=0"),
        (lambda: sk.KLDivergence(rho=0.0, active_above=1.0), "rho=0.0 is not between 0 and 1; active_above=1.0"),
    ],
)
def test_settings_that_cannot_work_are_all_named(wrong, message):
    with pytest.raises(sk.ConfigError, match=message):
        wrong()


def test_the_sparse_kernel_trains_as_the_dense_one_does():
    dense, sparse = (make(sk.Relu(l1=0.5), kernel=kernel).double() for kernel in ("dense", "sparse"))
    for sae in (dense, sparse):
        train(sae, 20)
    for (name, a), b in zip(dense.state_dict().items(), sparse.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)


def test_steps_reuse_gradient_memory_and_a_copy_does_not_share_it():
    sae, addresses = make(kernel="sparse"), []
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    for i in range(3):
        optimizer.zero_grad()
        sae.training_loss(batch(seed=i)).total.backward()
        addresses.append({sae.W_enc_T.grad.data_ptr(), sae.W_dec.grad.data_ptr()})
        sae.project_gradients_()
        optimizer.step()
        sae.project_()
    assert addresses[0] == addresses[1] == addresses[2]
    twin = copy.deepcopy(sae)
    twin.training_loss(batch()).total.backward()
    assert twin.W_dec.grad.data_ptr() not in addresses[0]


def test_encode_sparse_joins_batches_longer_than_it_takes_at_once():
    sae, x = make(sk.Relu()), batch(5000)
    active = sae.encode_sparse(x)
    torch.testing.assert_close(active.to_dense(32), sae.encode(x).detach(), rtol=1e-5, atol=1e-5)
    assert sae.encode_sparse(x[:0]).row_offsets.tolist() == [0]


def test_the_repr_is_one_line_a_person_can_read():
    sae = make(sk.TopK(k=4), dead_after_tokens=1000)
    sae.training_loss(batch(1234))
    sae.tokens_since_fired.zero_()
    sae.tokens_since_fired[:8] = 1000
    assert repr(sae) == ("SparseAutoencoder(8 -> 32, TopK(k=4), unit decoder, 1,234 tokens seen, 25.0% dead)")


def saturated(pre_activation: float, momentum: float, n_steps: int = 1) -> tuple[float, Tensor]:
    """The divergence and its gradient for a latent that is stuck in every row, after some steps of normal life."""
    sparsifier = KLDivergenceSparsifier(sk.KLDivergence(rho=0.05, momentum=momentum), 1)
    for _ in range(n_steps):
        sparsifier.divergence(torch.randn(64, 1) - 3)
    pre_acts = torch.full((64, 1), pre_activation, requires_grad=True)
    value = sparsifier.divergence(pre_acts)
    value.backward()
    assert pre_acts.grad is not None
    return value.item(), pre_acts.grad


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("pre_activation", [-200.0, -20.0, 20.0, 200.0])
def test_a_saturated_latent_has_a_finite_divergence_and_a_gradient_towards_its_target(pre_activation, momentum):
    value, gradient = saturated(pre_activation, momentum)
    assert math.isfinite(value)
    assert value > 0
    assert bool(gradient.isfinite().all())
    # Per row: away from the stuck side, and at least a tenth of the slope without memory, rho / n or (1 - rho) / n.
    towards = gradient * math.copysign(1, pre_activation)
    least = (0.05 if pre_activation < 0 else 0.95) / 64 / 10
    assert float(towards.min()) > 0.9 * least


def test_the_divergence_at_saturation_has_its_exact_value():
    value, _ = saturated(-200.0, momentum=0.0, n_steps=0)
    assert value == pytest.approx(0.05 * (math.log(0.05) + 200) + 0.95 * math.log(0.95), rel=1e-5)
    value, _ = saturated(200.0, momentum=0.0, n_steps=0)
    assert value == pytest.approx(0.05 * math.log(0.05) + 0.95 * (math.log(0.95) + 200), rel=1e-5)


def test_the_running_mean_follows_the_batches_and_the_gradient_uses_its_slope():
    sparsifier = KLDivergenceSparsifier(sk.KLDivergence(rho=0.05, momentum=0.9), 3).double()
    generator = torch.Generator().manual_seed(0)
    rho_hat = torch.full((3,), 0.05, dtype=torch.float64)
    for _ in range(20):
        pre_acts = (torch.randn(64, 3, generator=generator, dtype=torch.float64) - 1).requires_grad_()
        batch_mean = pre_acts.sigmoid().mean(0)
        rho_hat = 0.9 * rho_hat + 0.1 * batch_mean.detach()
        value = sparsifier.divergence(pre_acts)
    torch.testing.assert_close(sparsifier.log_rho_hat.exp(), rho_hat)
    torch.testing.assert_close(sparsifier.log_one_minus_rho_hat.exp(), 1 - rho_hat)
    expected = (0.05 * (0.05 / rho_hat).log() + 0.95 * (0.95 / (1 - rho_hat)).log()).sum()
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-9)
    slope = -0.05 / rho_hat + 0.95 / (1 - rho_hat)
    (found,) = torch.autograd.grad(value, pre_acts, retain_graph=True)
    (straight_through,) = torch.autograd.grad((slope * batch_mean).sum(), pre_acts)
    torch.testing.assert_close(found, straight_through)
