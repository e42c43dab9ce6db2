"""What a decoder's output says about the data: -log p(x | output) in nats, with every constant stated.

Each likelihood is a frozen spec, which people write, and the module it builds, below it (as in `sparsity.py`). Losses
are summed over features; their mean over the batch is what is trained. `Gaussian`, `Laplace` and `ContinuousBernoulli`
are densities and `Bernoulli` of binary data a probability: their nats cannot be compared with one another.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import ContinuousBernoulli as ContinuousBernoulliDistribution
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, softplus

from saekit.autoencoders.likelihood_base import LikelihoodModule
from saekit.errors import ConfigError, InputError

Link = Literal["identity", "sigmoid", "tanh", "softplus", "relu", "silu"]
_LINKS = {
    "identity": lambda output: output,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": softplus,
    "relu": torch.relu,
    "silu": nn.functional.silu,
}
_LINK_RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softplus": (0.0, math.inf), "relu": (0.0, math.inf)}
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_SIGMA_FLOOR = 1e-3
_SIGMA_MOMENTUM = 0.9
# Rates are kept off 0 and 1 where they become biases: a pixel that is never on would start at minus infinity.
_RATE_MARGIN = 0.01


def _check_link(spec: str, link: str) -> None:
    if link not in _LINKS:
        raise ConfigError(f"{spec}.link={link!r} is not one of {', '.join(_LINKS)}.")


def _rates(mean: Tensor) -> Tensor:
    return mean.clamp(_RATE_MARGIN, 1 - _RATE_MARGIN)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _LinkedModule(LikelihoodModule):
    """A likelihood around a mean that is a function, the link, of the decoder's output."""

    def __init__(self, link: str) -> None:
        super().__init__()
        self.link = link
        self.low, self.high = _LINK_RANGES.get(link, (-math.inf, math.inf))

    @property
    def name(self) -> str:
        bare = type(self).__name__.removesuffix("Module")
        return bare if self.link == "identity" else f"{bare}(link={self.link!r})"

    def mean(self, output: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return _LINKS[self.link](output)

    def output_for_mean(self, mean: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
        if self.link == "sigmoid":
            return _rates(mean).logit()
        if self.link == "tanh":
            return _rates((mean + 1) / 2).logit() / 2
        if self.link == "softplus":
            return mean.clamp_min(_RATE_MARGIN).expm1().log()
        return mean

    def _error(self, output: Tensor, x: Tensor) -> Tensor:
        return _at_least_float32(x) - self.mean(_at_least_float32(output))


@dataclass(frozen=True, kw_only=True)
class SquaredError:
    """||x - x_hat||^2 without constants, in squared units of x: not a density.

    It is `Gaussian(sigma=0.5**0.5)` less that one's constant (d_in / 2) log(pi), so beside a penalty in nats (a KL) it
    silently assumes this sigma. Use `Gaussian` there.
    """

    link: Link = "identity"
    """x_hat is this function of the decoder's output."""

    def __post_init__(self) -> None:
        _check_link("SquaredError", self.link)

    def build(self, d_in: int) -> LikelihoodModule:
        return SquaredErrorModule(self.link)


class SquaredErrorModule(_LinkedModule):
    def nll(self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        return self._error(output, x).square().sum(-1)

    def sample(self, output: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """The mean: a squared error names no noise."""
        return self.mean(output)


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """-log N(x; x_hat, sigma^2 I) = d_in/2 log(2 pi sigma^2) + ||x - x_hat||^2 / (2 sigma^2).

    With sigma "optimal" (sigma-VAE, Rybkin et al. 2021, arXiv:2006.13202) sigma^2 is the batch's mean squared error
    while training, and the running mean of that in `nll`; with "learned" it is a parameter. Both stop at 1e-3: data
    of 8 bits, or a constant feature, has no finite optimal density.
    """

    sigma: float | Literal["learned", "optimal"] = 1.0
    """Standard deviation of the noise, in units of x: a number, or where it comes from."""
    link: Link = "identity"
    """x_hat is this function of the decoder's output."""

    def __post_init__(self) -> None:
        _check_link("Gaussian", self.link)
        named = self.sigma in ("learned", "optimal")
        if not named and not (isinstance(self.sigma, (int, float)) and 0 < self.sigma < math.inf):
            raise ConfigError(f"Gaussian.sigma={self.sigma!r}; it is a number above 0, 'learned' or 'optimal'.")

    def build(self, d_in: int) -> LikelihoodModule:
        return GaussianModule(self)


class GaussianModule(_LinkedModule):
    variance: Tensor
    """`[]`: the running sigma^2, where it is optimal."""
    n_batches: Tensor
    """int64 `[]`: training batches seen, where it is optimal."""

    def __init__(self, spec: Gaussian) -> None:
        super().__init__(spec.link)
        self.spec = spec
        if spec.sigma == "learned":
            self.log_sigma = nn.Parameter(torch.zeros(()))
        if spec.sigma == "optimal":
            self.register_buffer("variance", torch.ones(()))
            self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    @property
    def sigma(self) -> Float[Tensor, ""]:
        """Standard deviation of the noise."""
        if self.spec.sigma == "learned":
            return self.log_sigma.exp().clamp_min(_SIGMA_FLOOR)
        if self.spec.sigma == "optimal":
            return self.variance.sqrt()
        return torch.tensor(self.spec.sigma, dtype=torch.float64)

    def nll(self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        error = self._error(output, x)
        return self._nll(error, self.sigma.square().to(error))

    def training_nll(
        self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, " batch"]:
        if self.spec.sigma != "optimal":
            return self.nll(output, x)
        error = self._error(output, x)
        # At the optimum the loss does not change with sigma, so its gradient needs none through sigma.
        best = error.detach().square().mean().clamp_min(_SIGMA_FLOOR**2)
        kept = torch.where(self.n_batches > 0, _SIGMA_MOMENTUM, 0.0).to(best)
        self.variance.copy_(kept * self.variance + (1 - kept) * best)
        self.n_batches += 1
        return self._nll(error, best)

    def sample(self, output: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        mean = self.mean(output)
        return mean + self.sigma.to(mean) * torch.randn_like(mean)

    def _nll(self, error: Tensor, variance: Tensor) -> Tensor:
        constant = error.shape[-1] * (_HALF_LOG_2PI + 0.5 * variance.log())
        return constant + error.square().sum(-1) / (2 * variance)


@dataclass(frozen=True, kw_only=True)
class Laplace:
    """d_in log(2 scale) + ||x - x_hat||_1 / scale: absolute errors, which outliers move less."""

    scale: float = 1.0
    """Mean absolute deviation, in units of x."""
    link: Link = "identity"
    """x_hat is this function of the decoder's output."""

    def __post_init__(self) -> None:
        _check_link("Laplace", self.link)
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"Laplace.scale={self.scale}; it is a number above 0.")

    def build(self, d_in: int) -> LikelihoodModule:
        return LaplaceModule(self)


class LaplaceModule(_LinkedModule):
    def __init__(self, spec: Laplace) -> None:
        super().__init__(spec.link)
        self.spec = spec

    def nll(self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        constant = x.shape[-1] * math.log(2 * self.spec.scale)
        return constant + self._error(output, x).abs().sum(-1) / self.spec.scale

    def sample(self, output: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        mean = self.mean(output)
        signed = 2 * torch.rand_like(mean).clamp(1e-6, 1 - 1e-6) - 1
        return mean - self.spec.scale * signed.sign() * torch.log1p(-signed.abs())


@dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """-sum x log p + (1 - x) log(1 - p) with p = sigmoid(output): the probability of binary data.

    Values between 0 and 1 are accepted: that is the cross-entropy of Hinton and Salakhutdinov 2006, whose minimum is
    the data's entropy and not 0, and no likelihood of grey values. Binarise, or use `ContinuousBernoulli`.
    """

    def build(self, d_in: int) -> LikelihoodModule:
        return BernoulliModule()


class BernoulliModule(LikelihoodModule):
    low, high = 0.0, 1.0

    def nll(self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        output = _at_least_float32(output)
        return binary_cross_entropy_with_logits(output, x.to(output.dtype), reduction="none").sum(-1)

    def mean(self, output: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return output.sigmoid()

    def sample(self, output: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        return output.sigmoid().bernoulli()

    def output_for_mean(self, mean: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
        return _rates(mean).logit()


@dataclass(frozen=True, kw_only=True)
class ContinuousBernoulli:
    """The density on [0, 1] that is proportional to p^x (1 - p)^(1 - x) (Loaiza-Ganem and Cunningham 2019,
    arXiv:1907.06845): the Bernoulli cross-entropy plus the constant that makes grey values a likelihood."""

    def build(self, d_in: int) -> LikelihoodModule:
        return ContinuousBernoulliModule()


class ContinuousBernoulliModule(LikelihoodModule):
    low, high = 0.0, 1.0

    def nll(self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        output = _at_least_float32(output)
        return -self._distribution(output).log_prob(x.to(output.dtype)).sum(-1)

    def mean(self, output: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The mean of x, which is not sigmoid(output)."""
        return self._distribution(_at_least_float32(output)).mean.to(output.dtype)

    def sample(self, output: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        return self._distribution(_at_least_float32(output)).sample()

    def output_for_mean(self, mean: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
        """Found by bisection: the mean, 1 + 1/expm1(output) - 1/output, has no inverse in closed form."""
        low, high = torch.full_like(mean, -100.0), torch.full_like(mean, 100.0)
        for _ in range(60):
            middle = (low + high) / 2
            is_low = self.mean(middle) < _rates(mean)
            low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
        return (low + high) / 2

    def _distribution(self, output: Tensor) -> ContinuousBernoulliDistribution:
        return ContinuousBernoulliDistribution(logits=output, validate_args=False)


@dataclass(frozen=True, kw_only=True)
class Multinomial:
    """-sum_i x_i log softmax(output)_i: counts, or frequencies, of words. `x_hat` are the words' probabilities.

    The multinomial coefficient is left out: it does not depend on the model.
    """

    per_word: bool = True
    """Divide by the row's sum: the cross-entropy in nats per word, in which long documents weigh as much as short ones.
    For rows of frequencies both are the same."""

    def build(self, d_in: int) -> LikelihoodModule:
        return MultinomialModule(self)


class MultinomialModule(LikelihoodModule):
    low = 0.0

    def __init__(self, spec: Multinomial) -> None:
        super().__init__()
        self.spec = spec

    def nll(self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        output = _at_least_float32(output)
        x = x.to(output.dtype)
        if self.spec.per_word:
            x = x / x.sum(-1, keepdim=True)
        return -(x * log_softmax(output, -1)).sum(-1)

    def mean(self, output: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return output.softmax(-1)

    def sample(self, output: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """One word per row, as a one-hot vector."""
        drawn = output.softmax(-1).multinomial(1)
        return torch.zeros_like(output).scatter_(-1, drawn, 1.0)

    def output_for_mean(self, mean: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
        shares = mean / mean.sum()
        return shares.clamp_min(_RATE_MARGIN / len(mean)).log()

    def check(self, x: Float[Tensor, "batch d_in"]) -> None:
        super().check(x)
        empty = (x.sum(-1) == 0).nonzero()
        if len(empty):
            raise InputError(
                f"Row {int(empty[0])} of x has no words at all ({len(empty)} such rows); Multinomial cannot use it. "
                "Drop them: x = x[x.sum(1) > 0]."
            )

    def advice(self, smallest: float, largest: float) -> str:
        return "Rows are counts or frequencies of words."


Likelihood = SquaredError | Gaussian | Laplace | Bernoulli | ContinuousBernoulli | Multinomial
"""Any likelihood spec. JSON tags and test ids come from the names in this union."""
