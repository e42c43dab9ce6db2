"""`LikelihoodModule`: what every likelihood can do, and what it says of data that it does not have."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.errors import InputError


class LikelihoodModule(nn.Module, ABC):
    """p(x | output): its negative logarithm, its mean, its draws. What it learns trains and is saved with the model."""

    low: float = -math.inf
    """Smallest value that data may have."""
    high: float = math.inf
    """Largest value that data may have."""

    @abstractmethod
    def nll(self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """-log p(x | output) of each example in nats, summed over features. Pure; float32 or better."""

    @abstractmethod
    def mean(self, output: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """E[x | output]: the reconstruction."""

    @abstractmethod
    def sample(self, output: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """A draw of x from torch's global random state."""

    def training_nll(
        self, output: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, " batch"]:
        """`nll` of a training batch, which may move buffers (`Gaussian(sigma="optimal")`)."""
        return self.nll(output, x)

    def output_for_mean(self, mean: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
        """The decoder output whose reconstruction is `mean`, kept away from the ends of the range: a first bias."""
        return mean

    def check(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Raise `InputError` naming the value, its row and the fix when `x` has NaNs or leaves the range."""
        if x.numel() == 0:
            return
        smallest, largest = (float(extreme) for extreme in torch.aminmax(x.detach()))
        if math.isnan(smallest) or math.isinf(smallest) or math.isinf(largest):
            row, feature = (~torch.isfinite(x)).nonzero()[0].tolist()
            raise InputError(
                f"x[{row}, {feature}] is {float(x[row, feature])}. Drop such rows: x = x[torch.isfinite(x).all(1)]."
            )
        if smallest < self.low or largest > self.high:
            value = smallest if smallest < self.low else largest
            row, feature = (x == value).nonzero()[0].tolist()
            allowed = f"in [{self.low:g}, {self.high:g}]" if self.high < math.inf else f"of {self.low:g} or more"
            raise InputError(
                f"x[{row}, {feature}] is {value:g}; {self.name} takes values {allowed}. "
                f"{self.advice(smallest, largest)}"
            )

    @property
    def name(self) -> str:
        return type(self).__name__.removesuffix("Module")

    def advice(self, smallest: float, largest: float) -> str:
        """What to type when data from `smallest` to `largest` is out of range."""
        if smallest >= 0 and largest <= 255:
            return "Pixels up to 255 are divided by 255: x = x / 255."
        return (
            f"Rescale it, x = (x - {smallest:g}) / {largest - smallest:g}, "
            "or use a likelihood without bounds: Gaussian(), SquaredError()."
        )
