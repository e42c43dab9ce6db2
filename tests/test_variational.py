"""The variational autoencoder: constants, bounds, gradients, against linear Gaussian models where all is known."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import saekit as sk
from saekit.autoencoders import VariationalAutoencoder, VariationalAutoencoderConfig
from saekit.errors import ConfigError, InputError

D_IN, D_LATENT, SIGMA = 5, 2, 0.5


def rows(n: int = 6, d: int = D_IN, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(**changes: object) -> VariationalAutoencoder:
    settings = {"d_in": D_IN, "d_latent": D_LATENT, "network": sk.Mlp(hidden=(7,)), "likelihood": sk.Gaussian()}
    return VariationalAutoencoder(VariationalAutoencoderConfig(**{**settings, **changes})).double()  # type: ignore[arg-type]


class Linear(nn.Module):
    """pPCA: x = W z + b + noise. With `exact`, the encoder is its posterior; its covariance is then diagonal."""

    def __init__(self, orthogonal: bool) -> None:
        super().__init__()
        W = torch.linalg.qr(rows(D_IN, D_LATENT))[0] * torch.tensor([1.5, 0.7]).double()
        self.W = W if orthogonal else W @ torch.tensor([[1.0, 0.8], [0.0, 1.0]]).double()
        self.b = rows(1, seed=3)[0]
        self.posterior_covariance = torch.linalg.inv(torch.eye(D_LATENT).double() + self.W.T @ self.W / SIGMA**2)

    def model(self) -> VariationalAutoencoder:
        encoder, decoder = nn.Linear(D_IN, 2 * D_LATENT), nn.Linear(D_LATENT, D_IN)
        config = VariationalAutoencoderConfig(
            d_in=D_IN, d_latent=D_LATENT, network=sk.Custom(), likelihood=sk.Gaussian(sigma=SIGMA)
        )
        vae = VariationalAutoencoder(config, encoder=encoder, decoder=decoder).double()
        to_mean = self.posterior_covariance @ self.W.T / SIGMA**2
        # The best factorised posterior has the precisions' diagonal.
        variances = 1 / torch.linalg.inv(self.posterior_covariance).diagonal()
        with torch.no_grad():
            decoder.weight.copy_(self.W)
            decoder.bias.copy_(self.b)
            encoder.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
            encoder.bias.copy_(torch.cat([-to_mean @ self.b, variances.log()]))
        return vae

    def log_p(self, x: torch.Tensor) -> torch.Tensor:
        covariance = self.W @ self.W.T + SIGMA**2 * torch.eye(D_IN).double()
        return MultivariateNormal(self.b, covariance).log_prob(x)


def test_with_the_exact_posterior_the_elbo_is_the_log_likelihood():
    linear, x = Linear(orthogonal=True), rows()
    vae = linear.model()
    # Of one sample it is not: the mean over z is. Every importance weight is p(x) though, so this has no noise at all.
    iw = vae.iw_nll(x, n_samples=3)
    torch.testing.assert_close(-iw.nll, linear.log_p(x), rtol=0, atol=1e-12)
    assert iw.standard_error.max() < 1e-10
    torch.manual_seed(0)
    torch.testing.assert_close(vae.elbo(x, n_samples=4000), linear.log_p(x), rtol=0, atol=0.15)


def test_the_gap_is_the_divergence_from_the_true_posterior_and_samples_close_it():
    linear, x = Linear(orthogonal=False), rows(40)
    vae = linear.model()
    torch.manual_seed(0)
    true = MultivariateNormal(vae.posterior(x).mean, linear.posterior_covariance)
    q = vae.posterior(x)
    approximate = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    gap = kl_divergence(approximate, true).mean()
    assert gap > 0.05
    elbo, log_p = vae.elbo(x, n_samples=500).mean(), linear.log_p(x).mean()
    torch.testing.assert_close(log_p - elbo, gap, rtol=0.1, atol=0)
    few, many = (-vae.iw_nll(x, n_samples=n).nll.mean() for n in (5, 500))
    assert elbo < few < many < log_p + 0.02
    assert log_p - many < gap / 4


def test_the_divergence_is_torchs_per_latent_and_in_total():
    vae, x = small(), rows()
    posterior = vae.posterior(x)
    expected = kl_divergence(Normal(posterior.mean, posterior.stddev), Normal(0.0, 1.0))
    torch.testing.assert_close(vae.kl(x), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(vae.kl(x).sum(1), kl_divergence(posterior, vae.prior), rtol=0, atol=1e-12)
    assert (vae.kl(x) >= 0).all()


def test_the_elbo_has_all_of_the_gaussians_constants():
    vae, x = small(likelihood=sk.Gaussian(sigma=0.3)), rows(2)
    with torch.no_grad():
        list(vae.encoder.parameters())[-1][D_LATENT:] = -100.0  # clamped: a posterior of hardly any width
    q = vae.posterior(x)
    assert q.stddev.max().item() == pytest.approx(math.exp(-5))
    x_hat = vae.decode(q.mean)
    log_p = -D_IN / 2 * math.log(2 * math.pi * 0.09) - (x - x_hat).square().sum(1) / 0.18
    torch.manual_seed(0)
    torch.testing.assert_close(vae.elbo(x, 2000), log_p - vae.kl(x).sum(1), rtol=0.01, atol=0)


def test_the_reparametrised_gradient_is_the_analytic_one():
    """d/dmu E[z^2] = 2 mu and d/dsigma E[z^2] = 2 sigma."""
    vae, x = small(), rows(1)
    with torch.enable_grad():
        posterior = vae.posterior(x)
        torch.manual_seed(0)
        z = posterior.rsample(torch.Size([40_000]))
        mean, scale = posterior.base_dist.loc, posterior.base_dist.scale
        found = torch.autograd.grad(z.square().mean(0).sum(), (mean, scale))
    error = 4 * 2 * scale.square().max() * 2 / 200
    assert (found[0] - 2 * mean).abs().max() < error
    assert (found[1] - 2 * scale).abs().max() < error


def test_reported_elbos_are_at_beta_one_whatever_is_trained():
    x = rows(30)
    losses = {}
    for beta in (0.5, 1.0, 4.0):
        vae = small(beta=beta)
        torch.manual_seed(0)
        losses[beta] = vae.training_loss(x)
        torch.manual_seed(0)
        torch.testing.assert_close(vae.elbo(x).mean(), losses[beta].terms["elbo"])
        parts = losses[beta].terms["reconstruction"] + losses[beta].terms["kl_penalty"]
        torch.testing.assert_close(losses[beta].total.detach(), parts)
    assert losses[0.5].terms["elbo"] == losses[4.0].terms["elbo"] == -losses[1.0].total
    torch.testing.assert_close(losses[4.0].terms["kl_penalty"], 4 * losses[4.0].terms["kl"])


def test_free_bits_cost_nothing_to_keep_and_the_raw_divergence_is_still_reported():
    vae, x = small(free_bits=0.5), rows(30)
    loss = vae.training_loss(x)
    raw = vae.kl(x).mean(0).detach()
    torch.testing.assert_close(loss.terms["kl_penalty"], raw.clamp(min=0.5).sum())
    torch.testing.assert_close(loss.terms["kl"], raw.sum())
    assert loss.terms["kl"] < loss.terms["kl_penalty"]


def test_the_divergence_is_warmed_up_over_rows_and_the_count_is_saved(tmp_path):
    vae, x = small(kl_warmup_rows=40), rows(10)
    shares = []
    for _ in range(6):
        terms = vae.training_loss(x).terms
        shares.append((terms["kl_penalty"] / terms["kl"]).item())
    assert shares == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    vae.save(tmp_path / "vae")
    assert int(VariationalAutoencoder.load(tmp_path / "vae").n_rows_seen) == 60


def test_encoding_is_the_posteriors_mean_also_while_training():
    vae, x = small(), rows()
    assert torch.equal(vae.encode(x), vae.encode(x))
    torch.testing.assert_close(vae.encode(x), vae.posterior(x).mean)


def test_new_rows_need_no_encoder_and_are_of_the_model():
    linear = Linear(orthogonal=False)
    vae = linear.model()
    del vae.encoder
    torch.manual_seed(0)
    new = vae.sample(20_000, noise=True)
    covariance = linear.W @ linear.W.T + SIGMA**2 * torch.eye(D_IN).double()
    torch.testing.assert_close(new.mean(0), linear.b, rtol=0, atol=0.06)
    torch.testing.assert_close(new.T.cov(), covariance, rtol=0, atol=0.12)
    assert vae.sample(3).shape == (3, D_IN)


def test_interpolations_run_from_one_reconstruction_to_the_other():
    vae, x = small(), rows(4)
    path = vae.interpolate(x[:2], x[2:], n=5)
    assert path.shape == (2, 5, D_IN)
    torch.testing.assert_close(path[:, 0], vae(x[:2]))
    torch.testing.assert_close(path[:, -1], vae(x[2:]))
    torch.testing.assert_close(path[:, 2], vae.decode((vae.encode(x[:2]) + vae.encode(x[2:])) / 2))


def test_a_latent_that_says_nothing_is_not_active():
    vae, x = small(), rows(50)
    with torch.no_grad():
        last = next(layer for layer in reversed(vae.encoder) if isinstance(layer, nn.Linear))
        last.weight.mul_(100)
        last.weight[1] = 0
    assert vae.active_latents(x).tolist() == [True, False]


def test_the_prior_is_a_distribution_and_may_be_learnt(tmp_path):
    vae, x = small(prior=sk.NormalMixture(n_components=3), d_latent=2), rows(50)
    assert isinstance(small().prior, Independent)
    assert vae.prior.sample(torch.Size([4])).shape == (4, 2)
    loss = vae.training_loss(x)
    loss.total.backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.prior_module.parameters())
    loaded = VariationalAutoencoder.load(vae.save(tmp_path / "vae"))
    z = rows(5, 2)
    torch.testing.assert_close(loaded.double().prior.log_prob(z), vae.prior.log_prob(z))
    # One component at N(0, I) is the standard normal: the estimated divergence is right on average.
    one = small(prior=sk.NormalMixture(n_components=1))
    with torch.no_grad():
        one.prior_module.means.zero_()
    torch.manual_seed(0)
    estimated = one.elbo(x, n_samples=500)
    torch.testing.assert_close(estimated, small().elbo(x, n_samples=500), rtol=0, atol=0.5)
    with pytest.raises(ConfigError, match="no closed form"):
        one.kl(x)


def test_images_may_be_convolved():
    vae = VariationalAutoencoder(
        VariationalAutoencoderConfig(d_in=49, d_latent=3, network=sk.Convolutional(image=(1, 7, 7), channels=(4,)))
    )
    x = torch.rand(8, 49).round()
    assert vae.training_loss(x).total.isfinite()
    assert vae.sample(2).shape == (2, 49)


def test_the_posterior_starts_close_to_the_prior():
    vae = VariationalAutoencoder(VariationalAutoencoderConfig(d_in=50, d_latent=10))
    assert vae.kl(torch.rand(20, 50)).sum(1).mean() < 0.5


def test_bfloat16_does_not_reach_the_divergence():
    vae, x = small().float(), rows(30).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.posterior(x).mean.dtype == torch.float32
        torch.manual_seed(0)
        rough = vae.training_loss(x)
    torch.manual_seed(0)
    torch.testing.assert_close(rough.total, vae.training_loss(x).total, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood": sk.SquaredError()}, r"no density.*Gaussian\(sigma='optimal'\)"),
        ({"beta": -1.0, "free_bits": float("nan")}, "beta=-1.0.*free_bits=nan"),
        ({"free_bits": 0.1, "prior": sk.NormalMixture()}, "only StandardNormal has"),
        ({"d_latent": 0}, "d_latent=0"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_input_that_cannot_be_is_named():
    vae = small(likelihood=sk.Bernoulli())
    with pytest.raises(InputError, match="Bernoulli takes values in"):
        vae.elbo(rows() + 10)
    with pytest.raises(InputError, match="nan"):
        vae.iw_nll(rows() * float("nan"))
    with pytest.raises(InputError, match="row by row"):
        vae.interpolate(rows(2), rows(3))
    with pytest.raises(ConfigError, match="n_samples=1; at least 2"):
        vae.iw_nll(rows().sigmoid(), n_samples=1)
