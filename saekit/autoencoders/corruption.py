"""What a denoising autoencoder does to its input: C(x~ | x) of Vincent et al. 2010 (JMLR 11), as frozen specs.

Draws come from torch's global random state, which a resumed run restores, unless a generator is given. Nothing is
rescaled: what is left of a masked row keeps its values.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from saekit.errors import ConfigError


class Corrupted(NamedTuple):
    """A corrupted batch."""

    x: Tensor
    """`[batch d_in]`: untouched entries are bitwise those of the input."""
    is_corrupted: Tensor
    """bool `[batch d_in]`: which entries were touched, also where that left their value as it was."""


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """x~ = x + sigma e with e ~ N(0, I): the corruption whose denoiser is the score (see `DenoisingAutoencoder`)."""

    sigma: float = 0.3
    """Standard deviation, in units of x."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"GaussianNoise.sigma={self.sigma}; it is a number above 0.")

    def __call__(self, x: Float[Tensor, "batch d_in"], generator: Generator | None = None) -> Corrupted:
        """Add noise to every entry."""
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return Corrupted(x + self.sigma * noise, torch.ones_like(x, dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Each entry is set to 0 with probability `share`."""

    share: float = 0.25
    """Probability, above 0 and below 1."""

    def __post_init__(self) -> None:
        _check_share("Masking", self.share)

    def __call__(self, x: Float[Tensor, "batch d_in"], generator: Generator | None = None) -> Corrupted:
        """Set entries to 0."""
        is_corrupted = _uniform(x, generator) < self.share
        return Corrupted(x.masked_fill(is_corrupted, 0.0), is_corrupted)


@dataclass(frozen=True, kw_only=True)
class SaltAndPepper:
    """Each entry is set to `low` with probability share / 2 and to `high` with probability share / 2."""

    share: float = 0.25
    """Probability of either, above 0 and below 1."""
    low: float = 0.0
    """Pepper: the smallest value of the data."""
    high: float = 1.0
    """Salt: the largest value of the data."""

    def __post_init__(self) -> None:
        _check_share("SaltAndPepper", self.share)
        if not self.low < self.high:
            raise ConfigError(f"SaltAndPepper: low={self.low} is not below high={self.high}.")

    def __call__(self, x: Float[Tensor, "batch d_in"], generator: Generator | None = None) -> Corrupted:
        """Set entries to either end of the range."""
        drawn = _uniform(x, generator)
        is_low, is_corrupted = drawn < self.share / 2, drawn < self.share
        return Corrupted(x.masked_fill(is_corrupted, self.high).masked_fill(is_low, self.low), is_corrupted)


Corruption = GaussianNoise | Masking | SaltAndPepper
"""Any corruption spec. JSON tags and test ids come from the names in this union."""


def _uniform(x: Tensor, generator: Generator | None) -> Float[Tensor, "..."]:
    # In float32 at least: draws of bfloat16 take 256 values.
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)


def _check_share(spec: str, share: float) -> None:
    if not 0 < share < 1:
        raise ConfigError(f"{spec}.share={share}; it is a probability above 0 and below 1.")
