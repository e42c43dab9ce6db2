"""The classic sparse autoencoder: a divergence that survives saturation, and a penalty that cannot be undone."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

import saekit as sk
from saekit.autoencoders import ClassicSparseAutoencoder, ClassicSparseAutoencoderConfig
from saekit.errors import ConfigError

AT_ONCE = sk.KLDivergence(momentum=0.0)


def small(**changes: object) -> ClassicSparseAutoencoder:
    return ClassicSparseAutoencoder(ClassicSparseAutoencoderConfig(**{"d_in": 6, "d_latent": 9, **changes}))  # type: ignore[arg-type]


def rows(n: int = 40) -> torch.Tensor:
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(0))


def test_the_divergence_is_the_one_between_two_coins():
    model, x = small(sparsity=AT_ONCE).double(), rows().double()
    rho_hat = model.encode(x).mean(0)
    expected = kl_divergence(Bernoulli(torch.tensor(0.05).double()), Bernoulli(rho_hat)).sum()
    torch.testing.assert_close(model.training_loss(x).terms["kl"], expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(model.rho_hat, rho_hat.detach())


@pytest.mark.parametrize("pre_activation", [-200.0, -20.0, 20.0, 200.0])
def test_a_saturated_latent_has_a_finite_loss_and_a_gradient(pre_activation):
    """rho log(rho / rho_hat) as it is usually written is infinite at +200, and clamped has no gradient at either."""
    model = small(sparsity=AT_ONCE)
    with torch.no_grad():
        model.encoder[0].weight.zero_()
        model.encoder[0].bias.fill_(pre_activation)
    loss = model.training_loss(rows())
    assert loss.terms["kl"].isfinite()
    loss.total.backward()
    gradient = model.encoder[0].bias.grad
    # Towards rho: down from above, up from below. Its size is 1 - rho above and rho below, once saturated.
    expected = 0.95 if pre_activation > 0 else -0.05
    torch.testing.assert_close(gradient, torch.full((9,), expected), rtol=0.01, atol=0)

    rho_hat = torch.tensor(pre_activation, requires_grad=True)
    clamped = rho_hat.sigmoid().clamp(1e-6, 1 - 1e-6)
    usual = 0.05 * (0.05 / clamped).log() + 0.95 * (0.95 / (1 - clamped)).log()
    usual.backward()
    assert rho_hat.grad == 0


def test_training_brings_the_mean_activation_to_rho():
    torch.manual_seed(0)
    x = rows(2000)
    model = small(sparsity=sk.KLDivergence(rho=0.1, weight=3.0))
    sk.fit([model], x.split(100), sk.FitConfig(lr=0.02, progress=False), n_tokens=20_000)
    with torch.no_grad():
        mean = model.encode(x).mean(0)
    assert (mean.mean() - 0.1).abs() < 0.01
    torch.testing.assert_close(model.rho_hat, mean, rtol=0.2, atol=0)


def test_every_latent_starts_at_rho():
    model = small(sparsity=sk.KLDivergence(rho=0.2))
    torch.testing.assert_close(model.encode(torch.zeros(1, 6)), torch.full((1, 9), 0.2))
    torch.testing.assert_close(model.rho_hat, torch.full((9,), 0.2))


def test_a_latent_that_is_always_at_rho_costs_nothing():
    """What the penalty does not see: it asks for sparsity over the data, not in any one row."""
    model = small(sparsity=AT_ONCE)
    with torch.no_grad():
        model.encoder[0].weight.zero_()
        model.encoder[0].bias.fill_(math.log(0.05 / 0.95))
    assert model.training_loss(rows()).terms["kl"].abs() < 1e-5


def test_the_l1_penalty_and_its_gradient_are_the_formula():
    model, x = small(sparsity=sk.L1(weight=0.3), decoder_norm="free", weight_decay=0.02).double(), rows().double()
    loss = model.training_loss(x)
    h = model.encode(x)
    weights = [model.encoder[0].weight, model.decoder[0].weight]
    decay = 0.01 * sum(w.square().sum() for w in weights)
    torch.testing.assert_close(loss.terms["l1"], 0.3 * h.sum(1).mean().detach())
    torch.testing.assert_close(loss.total, (model(x) - x).square().sum(1).mean() + 0.3 * h.sum(1).mean() + decay)
    assert loss.terms["l0"] == (h > 0.5).sum(1).double().mean()


def test_a_larger_penalty_leaves_fewer_latents_on():
    on = []
    for weight in (0.0, 0.02, 0.1):
        torch.manual_seed(0)
        model = small(sparsity=sk.L1(weight=weight))
        x = rows(400)
        sk.fit([model], x.split(50), sk.FitConfig(lr=0.02, progress=False), n_tokens=12_000)
        with torch.no_grad():
            on.append(model.encode(x).sum(1).mean().item())
    assert on[0] > on[1] > on[2]


@pytest.mark.parametrize("network", [sk.Mlp(hidden=()), sk.Mlp(hidden=(), tied=True)])
def test_with_l1_no_latent_writes_a_vector_longer_than_one(network):
    """Otherwise codes half as large with a decoder twice as large would cost half the penalty."""
    model = small(sparsity=sk.L1(), network=network)
    assert not model.decoder_is_free
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(50)
    model.project_()
    norms = model.decoder[0].weight.norm(dim=0)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_with_the_divergence_the_decoder_is_free_unless_asked():
    assert small().decoder_is_free
    assert not small(decoder_norm="unit").decoder_is_free


def test_rho_hat_runs_across_batches_and_is_saved(tmp_path):
    model = small(sparsity=sk.KLDivergence(momentum=0.9))
    before = model.rho_hat
    with torch.no_grad():
        model.encoder[0].bias.fill_(0.0)
    x = rows()
    model.training_loss(x)
    torch.testing.assert_close(model.rho_hat, 0.9 * before + 0.1 * model.encode(x).mean(0).detach())
    loaded = ClassicSparseAutoencoder.load(model.save(tmp_path / "sparse"))
    assert torch.equal(loaded.rho_hat, model.rho_hat)
    with pytest.raises(ConfigError, match="KLDivergence.. only"):
        _ = small(sparsity=sk.L1()).rho_hat


def test_it_is_the_wide_one_with_a_divergence_where_both_exist():
    """The same equation in the two classes: sigmoid code, squared error, KL; only the centring on b_dec differs."""
    classic, x = small(sparsity=AT_ONCE), rows()
    wide = sk.SparseAutoencoder(sk.SparseAutoencoderConfig(d_in=6, d_sae=9, sparsity=AT_ONCE))
    with torch.no_grad():
        wide.W_enc_T.copy_(classic.encoder[0].weight)
        wide.b_enc.copy_(classic.encoder[0].bias)
        wide.W_dec.copy_(classic.decoder[0].weight.T)
        wide.b_dec.zero_()
        classic.decoder[0].bias.zero_()
    a, b = classic.training_loss(x), wide.training_loss(x)
    torch.testing.assert_close(a.total, b.total)
    torch.testing.assert_close(a.x_hat, b.x_hat)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sk.L1(weight=-1.0), "L1: weight=-1.0"),
        (lambda: small(d_latent=0), "d_latent=0"),
        (lambda: small(weight_decay=-0.1), "weight_decay=-0.1"),
    ],
)
def test_settings_that_cannot_be_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
