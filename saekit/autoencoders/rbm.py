"""`RBM`: the restricted Boltzmann machine, trained by autograd of free-energy differences; its partition function.

p(v, h) = exp(-E(v, h)) / Z with E(v, h) = -v W h + (visible units' own energy) + (hidden units' own energy), where a
binary unit's own energy is -(its bias) * (its value), and that of a Gaussian one, of variance 1, is
(its value - its bias)^2 / 2. Smolensky 1986; Hinton 2002 (contrastive divergence); Tieleman 2008 (persistent chains);
Hinton 2010 (A practical guide) for initial values; Salakhutdinov and Murray 2008 for annealed importance sampling.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from saekit.autoencoders.base import Autoencoder, LossTerms
from saekit.autoencoders.encoder_decoder import check_sizes, check_width
from saekit.autoencoders.likelihoods import BernoulliModule, LikelihoodModule, SquaredErrorModule
from saekit.autoencoders.modules import seeded
from saekit.errors import ConfigError

Unit = Literal["binary", "gaussian"]
MAX_ENUMERATED = 22
_ENUMERATED_AT_ONCE = 2**14
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class RBMConfig:
    """What a restricted Boltzmann machine is, and by which chains its gradient is estimated."""

    d_in: int
    """Visible units."""
    d_latent: int
    """Hidden units."""
    visible: Unit = "binary"
    """Kind of the visible units; Gaussian ones have variance 1, so standardise the data."""
    hidden: Unit = "binary"
    """Kind of the hidden units. Gaussian ones need binary visible ones, and a learning rate ten to a hundred times
    smaller."""
    chains: Literal["data", "persistent"] = "data"
    """Where a step's Gibbs chains start: at the batch (contrastive divergence, CD-k), or where they were (PCD)."""
    n_gibbs: int = 1
    """Gibbs steps per training step: the k of CD-k."""
    n_chains: int = 100
    """Persistent chains."""
    mean_field_visible: bool = False
    """Chains carry the visible units' probabilities instead of draws: less noise, usual for pretraining on pixels, but
    no longer a sample of the model."""
    weight_decay: float = 2e-4
    """Weight of ||W||^2 / 2 in the loss; biases have none."""
    hidden_bias: float = 0.0
    """Initial bias of the hidden units; -4 makes them sparse at first."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_latent", "n_gibbs", "n_chains")
        problems = []
        for name in ("visible", "hidden"):
            if getattr(self, name) not in ("binary", "gaussian"):
                problems.append(f"{name}={getattr(self, name)!r} is not 'binary' or 'gaussian'")
        if self.visible == self.hidden == "gaussian":
            problems.append(
                "visible and hidden are both 'gaussian', which has no density unless ||W|| < 1; make one of them "
                "'binary', or use LinearAutoencoder"
            )
        if self.chains not in ("data", "persistent"):
            problems.append(f"chains={self.chains!r} is not 'data' or 'persistent'")
        if not 0 <= self.weight_decay < math.inf:
            problems.append(f"weight_decay={self.weight_decay} is not a number, 0 or larger")
        if problems:
            raise ConfigError(f"RBMConfig: {'; '.join(problems)}.")


class LogPartition(NamedTuple):
    """log Z and how far it can be trusted."""

    value: float
    """Natural logarithm of the partition function."""
    standard_error: float
    """Of `value`, by the delta method; 0 when it was enumerated. It does not know of modes that no chain found."""
    method: str
    """"exact" or "ais"."""


@final
class RBM(Autoencoder):
    """A restricted Boltzmann machine. `encode` is E[h | v], `decode` E[v | h]: one mean-field pass up and down."""

    Config: ClassVar[type] = RBMConfig
    config: RBMConfig

    particles: Tensor
    """`[n_chains d_in]`: visible states of the persistent chains; absent without them."""

    def __init__(self, config: RBMConfig) -> None:
        super().__init__(config)
        with seeded(config.seed):
            self.W = nn.Parameter(0.01 * torch.randn(config.d_in, config.d_latent))
            if config.chains == "persistent":
                self.register_buffer("particles", torch.rand(config.n_chains, config.d_in).round())
        self.b_visible = nn.Parameter(torch.zeros(config.d_in))
        self.b_hidden = nn.Parameter(torch.full((config.d_latent,), config.hidden_bias))
        # Only its range check and its inverse link are needed; it has no parameters.
        self.units: LikelihoodModule = (
            BernoulliModule() if config.visible == "binary" else SquaredErrorModule("identity")
        )

    @torch.no_grad()
    def set_data_mean_(self, mean: Float[Tensor, " d_in"]) -> None:
        """Start from the data's mean: it is what the visible biases alone then predict."""
        self.b_visible.copy_(self.units.output_for_mean(mean))

    def hidden_inputs(self, v: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_latent"]:
        """Total input of the hidden units: v W + their bias."""
        return v @ self.W + self.b_hidden

    def visible_inputs(self, h: Float[Tensor, "batch d_latent"]) -> Float[Tensor, "batch d_in"]:
        """Total input of the visible units: h W^T + their bias."""
        return h @ self.W.T + self.b_visible

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_latent"]:
        """E[h | v = x]: probabilities of binary hidden units, means of Gaussian ones."""
        check_width(x, self.config.d_in)
        return _mean(self.hidden_inputs(x), self.config.hidden)

    def decode(self, latents: Float[Tensor, "batch d_latent"]) -> Float[Tensor, "batch d_in"]:
        """E[v | h = latents]."""
        return _mean(self.visible_inputs(latents), self.config.visible)

    def free_energy(self, v: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """F(v) = -log sum_h exp(-E(v, h)), the sum an integral over Gaussian hidden units: p(v) = exp(-F(v)) / Z.

        Log Z is the same for all rows: the mean free energy of held-out rows less that of training rows grows when the
        machine overfits (Hinton 2010).
        """
        return self._free_energy(v, self, 1.0)

    def energy(self, v: Float[Tensor, "batch d_in"], h: Float[Tensor, "batch d_latent"]) -> Float[Tensor, " batch"]:
        """E(v, h)."""
        own_v = _own_energy(v, self.b_visible, self.config.visible)
        own_h = _own_energy(h, self.b_hidden, self.config.hidden)
        return own_v + own_h - ((v @ self.W) * h).sum(1)

    @torch.no_grad()
    def gibbs(self, v: Float[Tensor, "batch d_in"], n_steps: int = 1) -> Float[Tensor, "batch d_in"]:
        """Visible states after `n_steps` of Gibbs sampling from `v`, out of torch's global random state."""
        emit = _mean if self.config.mean_field_visible else _draw
        for _ in range(n_steps):
            h = _draw(self.hidden_inputs(v), self.config.hidden)
            v = emit(self.visible_inputs(h), self.config.visible)
        return v

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """mean F(data) - mean F(chains), whose gradient is that of CD-k or PCD, plus weight decay.

        Its value is no measure of fit. Nor is `reconstruction`, the squared error of one mean-field pass, more than a
        hint; log-likelihoods need `log_partition`.
        """
        self.check(x)
        persistent = self.config.chains == "persistent"
        negative = self.gibbs(self.particles if persistent else x, self.config.n_gibbs)
        gap = self.free_energy(x).mean() - self.free_energy(negative).mean()
        decay = 0.5 * self.config.weight_decay * self.W.square().sum()
        with torch.no_grad():
            if persistent:
                self.particles.copy_(negative)
            latents = self.encode(x)
            x_hat = self.decode(latents)
            error = (x - x_hat).square().sum(1).mean()
        terms = {"free_energy_gap": gap.detach(), "weight_decay": decay.detach(), "reconstruction": error}
        return LossTerms(gap + decay, terms, x_hat, latents)

    def check(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Raise `InputError` for another width, NaNs, or values outside [0, 1] for binary units."""
        check_width(x, self.config.d_in)
        self.units.check(x)

    def log_partition(self, n_chains: int = 512, n_temperatures: int = 2000, seed: int = 0) -> LogPartition:
        """log Z: exact when a binary side has at most 22 units, annealed importance sampling otherwise."""
        if min(self._binary_sides().values()) <= MAX_ENUMERATED:
            return self.exact_log_partition()
        return self.ais_log_partition(n_chains, n_temperatures, seed)

    @torch.no_grad()
    def exact_log_partition(self, over: Literal["smaller", "visible", "hidden"] = "smaller") -> LogPartition:
        """log Z by enumerating all states of one side, in float64; the other side is summed in closed form.

        Raises `ConfigError` for a side that is Gaussian or has more than 22 units.
        """
        sides = self._binary_sides()
        side = min(sides, key=sides.__getitem__) if over == "smaller" else over
        if sides.get(side, math.inf) > MAX_ENUMERATED:
            found = f"has {sides[side]} units; {MAX_ENUMERATED}" if side in sides else "is Gaussian; binary units"
            raise ConfigError(f"The {side} side {found} can be enumerated. Type: rbm.ais_log_partition()")
        weights, free_energy = self._float64(), self._free_energy if side == "visible" else self._hidden_free_energy
        total = torch.tensor(-math.inf, dtype=torch.float64)
        for states in _binary_states(sides[side]):
            total = torch.logaddexp(total, torch.logsumexp(-free_energy(states, weights, 1.0), 0))
        return LogPartition(float(total), 0.0, "exact")

    @torch.no_grad()
    def ais_log_partition(self, n_chains: int = 512, n_temperatures: int = 2000, seed: int = 0) -> LogPartition:
        """log Z by annealed importance sampling (Neal 2001; Salakhutdinov and Murray 2008), in float64.

        Chains go from the machine with these biases and no weights, whose log Z is known, to this one.
        """
        visible, hidden, weights = self.config.visible, self.config.hidden, self._float64()
        betas = torch.linspace(0, 1, n_temperatures + 1, dtype=torch.float64).tolist()
        with seeded(seed):
            v = _draw(weights.b_visible.expand(n_chains, -1), visible)
            log_weights = torch.zeros(n_chains, dtype=torch.float64)
            for before, beta in pairwise(betas):
                log_weights += self._free_energy(v, weights, before) - self._free_energy(v, weights, beta)
                h = _draw(beta * v @ weights.W + weights.b_hidden, hidden)
                v = _draw(beta * h @ weights.W.T + weights.b_visible, visible)
        mean = log_weights.logsumexp(0) - math.log(n_chains)
        base = _log_summed_out(torch.zeros_like(weights.b_visible), weights.b_visible, visible)
        base = base + _log_summed_out(torch.zeros_like(weights.b_hidden), weights.b_hidden, hidden)
        error = (log_weights - mean).exp().std() / math.sqrt(n_chains)
        return LogPartition(float(base + mean), float(error), "ais")

    @torch.no_grad()
    def log_likelihood(
        self, v: Float[Tensor, "batch d_in"], log_partition: LogPartition | None = None
    ) -> Float[Tensor, " batch"]:
        """log p(v) = -F(v) - log Z of each row, in nats."""
        return -self.free_energy(v) - (log_partition or self.log_partition()).value

    def _free_energy(self, v: Tensor, weights: "RBM | _Weights", beta: float) -> Tensor:
        """F(v) with the weights multiplied by `beta`."""
        own = _own_energy(v, weights.b_visible, self.config.visible)
        return own - _log_summed_out(beta * v @ weights.W, weights.b_hidden, self.config.hidden)

    def _hidden_free_energy(self, h: Tensor, weights: "RBM | _Weights", beta: float) -> Tensor:
        own = _own_energy(h, weights.b_hidden, self.config.hidden)
        return own - _log_summed_out(beta * h @ weights.W.T, weights.b_visible, self.config.visible)

    def _float64(self) -> "_Weights":
        return _Weights(*(p.detach().cpu().double() for p in (self.W, self.b_visible, self.b_hidden)))

    def _binary_sides(self) -> dict[str, int]:
        config = self.config
        sides = {"visible": (config.visible, config.d_in), "hidden": (config.hidden, config.d_latent)}
        return {name: size for name, (unit, size) in sides.items() if unit == "binary"}

    def extra_repr(self) -> str:
        config = self.config
        return f"{config.d_in} {config.visible} visible, {config.d_latent} {config.hidden} hidden"


class _Weights(NamedTuple):
    W: Tensor
    b_visible: Tensor
    b_hidden: Tensor


def _own_energy(states: Tensor, bias: Tensor, unit: str) -> Tensor:
    """The energy that units have by themselves."""
    return -(states * bias).sum(-1) if unit == "binary" else 0.5 * (states - bias).square().sum(-1)


def _log_summed_out(field: Tensor, bias: Tensor, unit: str) -> Tensor:
    """log of the sum, or integral, over the units' states u of exp(field u - own energy of u)."""
    if unit == "binary":
        return softplus(field + bias).sum(-1)
    return (field * bias + 0.5 * field.square()).sum(-1) + 0.5 * _LOG_2PI * field.shape[-1]


def _mean(inputs: Tensor, unit: str) -> Tensor:
    return inputs.sigmoid() if unit == "binary" else inputs


def _draw(inputs: Tensor, unit: str) -> Tensor:
    return inputs.sigmoid().bernoulli() if unit == "binary" else inputs + torch.randn_like(inputs)


def _binary_states(n: int) -> Iterator[Tensor]:
    """All 2^n states of n binary units, some rows at a time."""
    for chunk in torch.arange(2**n).split(_ENUMERATED_AT_ONCE):
        yield ((chunk[:, None] >> torch.arange(n)) & 1).double()
