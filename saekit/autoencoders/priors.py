"""What latents are before any data is seen: p(z) as a spec, and the `torch.distributions` object that it builds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from saekit.errors import ConfigError


class PriorModule(nn.Module, ABC):
    """Holds what a prior learns, so that it trains and is saved with the model."""

    @abstractmethod
    def distribution(self) -> Distribution:
        """Over `[d_latent]` vectors, on the module's device."""


@dataclass(frozen=True, kw_only=True)
class StandardNormal:
    """N(0, I), chosen for convenience: its divergence from a Gaussian posterior has a closed form."""

    def build(self, d_latent: int) -> PriorModule:
        return StandardNormalModule(d_latent)


class StandardNormalModule(PriorModule):
    zero: Tensor
    """`[d_latent]`, not saved: knows the device and the dtype."""

    def __init__(self, d_latent: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(d_latent), persistent=False)

    def distribution(self) -> Distribution:
        return Independent(Normal(self.zero, torch.ones_like(self.zero), validate_args=False), 1)


@dataclass(frozen=True, kw_only=True)
class NormalMixture:
    """A mixture of diagonal Gaussians whose weights, means and scales are learnt with the rest.

    Its divergence from the posterior has no closed form and is estimated by the sample that is decoded.
    """

    n_components: int = 10
    """Gaussians in the mixture."""

    def __post_init__(self) -> None:
        if self.n_components < 1:
            raise ConfigError(f"NormalMixture.n_components={self.n_components} is not 1 or larger.")

    def build(self, d_latent: int) -> PriorModule:
        return NormalMixtureModule(self.n_components, d_latent)


class NormalMixtureModule(PriorModule):
    def __init__(self, n_components: int, d_latent: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.means = nn.Parameter(torch.randn(n_components, d_latent))
        self.log_scales = nn.Parameter(torch.zeros(n_components, d_latent))

    def distribution(self) -> Distribution:
        each = Independent(Normal(self.means, self.log_scales.exp(), validate_args=False), 1)
        return MixtureSameFamily(Categorical(logits=self.logits, validate_args=False), each, validate_args=False)


Prior = StandardNormal | NormalMixture
"""Any prior spec."""
