"""`VariationalAutoencoder`: a model of the data with latents drawn from a prior, trained on a bound of log p(x).

Kingma and Welling 2013 (arXiv:1312.6114); beta: Higgins et al. 2017; free bits: Kingma et al. 2016 (arXiv:1606.04934);
importance weights: Burda et al. 2015 (arXiv:1509.00519). All numbers are nats per row, summed over features.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from saekit.autoencoders.base import LossTerms
from saekit.autoencoders.encoder_decoder import EncoderDecoder, check_sizes
from saekit.autoencoders.likelihoods import Bernoulli, Likelihood, SquaredError
from saekit.autoencoders.modules import Custom, Mlp, Network, linear_layers, seeded
from saekit.autoencoders.priors import Prior, StandardNormal
from saekit.errors import ConfigError, InputError

# Variances from e^-10 to e^10: beyond, exp overflows half precision and gradients are of no use.
_LOG_VARIANCE_LIMIT = 10.0
# The encoder's last layer starts this much smaller: the posterior starts near N(0, I), its divergence near 0.
_POSTERIOR_GAIN = 0.1
# Rows times samples that are decoded at once by `iw_nll`.
_DECODED_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class VariationalAutoencoderConfig:
    """What a variational autoencoder is. How it is trained belongs to `fit`."""

    d_in: int
    """Width of a row; an image is flattened."""
    d_latent: int
    """Width of the code."""
    network: Network = field(default_factory=Mlp)
    """Encoder (to a mean and a log variance for each latent) and decoder."""
    likelihood: Likelihood = field(default_factory=Bernoulli)
    """p(x | z), in nats: its noise is what decides how much the code is worth."""
    prior: Prior = field(default_factory=StandardNormal)
    """p(z)."""
    beta: float = 1.0
    """Weight of the divergence in the training loss. Reported ELBOs are always at 1."""
    free_bits: float = 0.0
    """Nats per latent below which its divergence, the mean over the batch, costs nothing more to lower."""
    kl_warmup_rows: int = 0
    """The divergence's weight rises linearly from 0 over this many rows of training."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_latent")
        problems = [
            f"{name}={getattr(self, name)} is not a number, 0 or larger"
            for name in ("beta", "free_bits", "kl_warmup_rows")
            if not 0 <= getattr(self, name) < math.inf
        ]
        if isinstance(self.likelihood, SquaredError):
            problems.append(
                "likelihood=SquaredError() is no density, so there is no ELBO; use Gaussian(sigma='optimal'), or name "
                "the sigma that you mean"
            )
        if self.free_bits > 0 and not isinstance(self.prior, StandardNormal):
            problems.append("free_bits counts the divergence of single latents, which only StandardNormal has")
        if problems:
            raise ConfigError(f"VariationalAutoencoderConfig: {'; '.join(problems)}.")


class ImportanceWeighted(NamedTuple):
    """An estimate of -log p(x) by importance sampling, never below it in expectation."""

    nll: Tensor
    """float64 `[batch]`: nats."""
    standard_error: Tensor
    """float64 `[batch]`: of `nll`, from the spread of the weights; too small where few weights count."""


@final
class VariationalAutoencoder(EncoderDecoder):
    """p(x) = int p(x | z) p(z) dz with q(z | x) = N(mu(x), diag sigma(x)^2), so that log p(x) >= ELBO(x).

    log p(x) - ELBO(x) = KL(q(z | x) || p(z | x)). `encode` is mu(x), in every mode; `sample` needs no encoder.
    """

    Config: ClassVar[type] = VariationalAutoencoderConfig
    config: VariationalAutoencoderConfig
    code_per_latent: ClassVar[int] = 2

    n_rows_seen: Tensor
    """int64 `[]`: training rows so far."""

    def __init__(
        self,
        config: VariationalAutoencoderConfig,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config, encoder=encoder, decoder=decoder)
        with seeded(config.seed + 1):
            self.prior_module = config.prior.build(config.d_latent)
        self.register_buffer("n_rows_seen", torch.zeros((), dtype=torch.int64))
        if not isinstance(config.network, Custom):
            with torch.no_grad():
                linear_layers(self.encoder)[-1].weight.mul_(_POSTERIOR_GAIN)

    @property
    def prior(self) -> Distribution:
        """p(z), over `[d_latent]` vectors."""
        return self.prior_module.distribution()

    def latents_of(self, pre_acts: Float[Tensor, "batch d_code"]) -> Float[Tensor, "batch d_latent"]:
        return pre_acts[:, : self.config.d_latent]

    def posterior(self, x: Float[Tensor, "batch d_in"]) -> Independent:
        """q(z | x), over `[batch d_latent]`."""
        code = self.pre_activations(x)
        mean, log_variance = (code if code.dtype == torch.float64 else code.float()).chunk(2, dim=1)
        limited = log_variance.clamp(-_LOG_VARIANCE_LIMIT, _LOG_VARIANCE_LIMIT)
        return Independent(Normal(mean, (limited / 2).exp(), validate_args=False), 1)

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """-log p(x | z) + beta KL, with one z from q(z | x) by reparametrisation; batch means.

        `terms`: `reconstruction` and `kl_penalty`, which add up to the loss; `kl` and `elbo` (at beta = 1, without free
        bits) as measures. `x_hat` and `latents` are of the drawn z.
        """
        self.check(x)
        posterior = self.posterior(x)
        z = posterior.rsample()
        output = self.output(z)
        reconstruction = self.likelihood.training_nll(output, x).mean()
        kl = self._kl(posterior, z)
        paid = kl.mean(0).clamp(min=self.config.free_bits).sum() if self.config.free_bits > 0 else kl.sum(1).mean()
        penalty = self.config.beta * self._warmth() * paid
        with torch.no_grad():
            self.n_rows_seen += len(x)
            kl_mean = kl.sum(1).mean()
            x_hat = self.likelihood.mean(output)
        terms = {
            "reconstruction": reconstruction.detach(),
            "kl_penalty": penalty.detach(),
            "kl": kl_mean,
            "elbo": -(reconstruction.detach() + kl_mean),
        }
        return LossTerms(reconstruction + penalty, terms, x_hat, z.detach())

    def kl(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_latent"]:
        """KL(q(z_j | x) || p(z_j)) of each latent, in closed form; raises `ConfigError` where the prior has none."""
        if not isinstance(self.config.prior, StandardNormal):
            raise ConfigError(f"With prior={self.config.prior} the divergence of single latents has no closed form.")
        posterior = self.posterior(x)
        return self._kl(posterior, posterior.mean)

    @torch.no_grad()
    def elbo(self, x: Float[Tensor, "batch d_in"], n_samples: int = 1) -> Float[Tensor, " batch"]:
        """log p(x | z) averaged over `n_samples` z from q(z | x), less the divergence: beta = 1, whatever `beta` is."""
        self.check(x)
        if n_samples < 1:
            raise ConfigError(f"n_samples={n_samples} is not 1 or larger.")
        posterior = self.posterior(x)
        bounds = []
        for _ in range(n_samples):
            z = posterior.sample()
            bounds.append(-self.likelihood.nll(self.output(z), x) - self._kl(posterior, z).sum(1))
        return torch.stack(bounds).mean(0)

    @torch.no_grad()
    def iw_nll(self, x: Float[Tensor, "batch d_in"], n_samples: int = 500) -> ImportanceWeighted:
        """-log of the mean over `n_samples` z from q(z | x) of p(x | z) p(z) / q(z | x): the bound of Burda et al.

        It lies between -ELBO (`n_samples=1`) and -log p(x), which it reaches as `n_samples` grows.
        """
        self.check(x)
        if n_samples < 2:
            raise ConfigError(f"n_samples={n_samples}; at least 2 are needed for a standard error, 500 for use.")
        posterior, prior = self.posterior(x), self.prior
        log_weights = []
        chunk = max(1, _DECODED_AT_ONCE // len(x))
        for first in range(0, n_samples, chunk):
            n = min(chunk, n_samples - first)
            z = posterior.sample(torch.Size([n]))
            repeated = x.expand(n, *x.shape).reshape(-1, x.shape[1])
            nll = self.likelihood.nll(self.output(z.reshape(-1, z.shape[-1])), repeated).view(n, -1)
            log_weights.append((prior.log_prob(z) - posterior.log_prob(z) - nll).double())
        stacked = torch.cat(log_weights)
        log_mean = stacked.logsumexp(0) - math.log(n_samples)
        relative = (stacked - log_mean).exp()
        return ImportanceWeighted(-log_mean, relative.std(0) / math.sqrt(n_samples))

    @torch.no_grad()
    def sample(self, n: int, *, noise: bool = False) -> Float[Tensor, "n d_in"]:
        """`n` new rows: z from the prior, and the mean of p(x | z), or with `noise` a draw from it."""
        z = self.prior.sample(torch.Size([n]))
        output = self.output(z)
        return self.likelihood.sample(output) if noise else self.likelihood.mean(output)

    @torch.no_grad()
    def interpolate(
        self, a: Float[Tensor, "batch d_in"], b: Float[Tensor, "batch_b d_in"], n: int = 8
    ) -> Float[Tensor, "batch n d_in"]:
        """Reconstructions of `n` codes evenly spaced on the line from `encode(a)` to `encode(b)`, ends included."""
        if a.shape != b.shape:
            raise InputError(f"a has shape {list(a.shape)} and b {list(b.shape)}; they are interpolated row by row.")
        if n < 2:
            raise ConfigError(f"n={n}; an interpolation has 2 ends at least.")
        shares = torch.linspace(0, 1, n, dtype=a.dtype, device=a.device)[:, None]
        codes = torch.lerp(self.encode(a)[:, None], self.encode(b)[:, None], shares)
        return self.decode(codes.reshape(-1, codes.shape[-1])).view(len(a), n, -1)

    @torch.no_grad()
    def active_latents(self, x: Float[Tensor, "batch d_in"]) -> Bool[Tensor, " d_latent"]:
        """Latents whose posterior mean varies with x by more than 0.01 in variance (Burda et al. 2015)."""
        return self.encode(x).var(0) > 0.01

    def _kl(self, posterior: Independent, z: Tensor) -> Tensor:
        """`[batch d_latent]` in closed form for N(0, I), else `[batch 1]`, estimated at `z`."""
        if isinstance(self.config.prior, StandardNormal):
            mean, variance = posterior.mean, posterior.variance
            return 0.5 * (mean.square() + variance - 1 - variance.log())
        return (posterior.log_prob(z) - self.prior.log_prob(z))[:, None]

    def _warmth(self) -> Tensor | float:
        rows = self.config.kl_warmup_rows
        return (self.n_rows_seen / rows).clamp(max=1.0) if rows else 1.0
