"""How many bits a token's code costs: the minimum description length of a dictionary beside that of other codes.

Ayonrinde et al. 2024 (arXiv:2410.11179). Activations of a latent are rounded to the middles of equal-width bins between
its smallest and largest active value, and every latent is coded by itself with the ideal code for how often it fires
and for its bins: bits = sum over latents of H(fires) + P(fires) H(bin | fires). The rounded code is decoded again, so
that bits stand beside the error they buy. The cost of the dictionary itself is left out, as in the paper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.kernels import SparseLatents

BINS = (4, 16, 64)


@dataclass(frozen=True, kw_only=True)
class DescriptionLength:
    """The cost of one code at one precision."""

    code: str
    """`"sae"`, `"raw"` (every dimension of the activations by itself) or `"pca"` (as many components as L0)."""
    n_bins: int
    bits: float
    """Per token."""
    fvu: float
    """Of the reconstruction from the rounded code."""


@torch.no_grad()
def sparse_length(
    codes: SparseLatents,
    n_latents: int,
    n_bins: int,
    decode: Callable[[SparseLatents], Float[Tensor, "row d_in"]],
    x: Float[Tensor, "row d_in"],
    code: str = "sae",
) -> DescriptionLength:
    """Bits per row of sparse `codes`, and the FVU of `x` after rounding them."""
    n_rows = len(codes.row_offsets) - 1
    latents, values = codes.latents.long(), codes.values.float()
    low = torch.full((n_latents,), torch.inf, device=values.device).scatter_reduce(0, latents, values, "amin")
    high = torch.full((n_latents,), -torch.inf, device=values.device).scatter_reduce(0, latents, values, "amax")
    width = ((high - low) / n_bins).nan_to_num(0.0, 0.0, 0.0)
    safe = torch.where(width > 0, width, 1.0)
    bins = ((values - low[latents]) / safe[latents]).long().clamp(0, n_bins - 1)
    counts = torch.bincount(latents * n_bins + bins, minlength=n_latents * n_bins).view(n_latents, n_bins)
    middle = torch.where(width[latents] > 0, low[latents] + (bins + 0.5) * width[latents], values)
    rounded = SparseLatents(codes.row_offsets, codes.latents, middle)
    return DescriptionLength(
        code=code, n_bins=n_bins, bits=code_bits(counts, n_rows), fvu=_fvu(x, decode(rounded).to(x))
    )


@torch.no_grad()
def dense_length(
    numbers: Float[Tensor, "row width"],
    n_bins: int,
    decode: Callable[[Float[Tensor, "row width"]], Float[Tensor, "row d_in"]],
    x: Float[Tensor, "row d_in"],
    code: str,
) -> DescriptionLength:
    """The same for a code whose every number is always there."""
    low, high = numbers.amin(0), numbers.amax(0)
    width = (high - low) / n_bins
    bins = ((numbers - low) / torch.where(width > 0, width, 1.0)).long().clamp(0, n_bins - 1)
    columns = torch.arange(numbers.shape[1], device=numbers.device) * n_bins
    counts = torch.bincount((bins + columns).flatten(), minlength=numbers.shape[1] * n_bins).view(-1, n_bins)
    rounded = torch.where(width > 0, low + (bins + 0.5) * width, numbers)
    return DescriptionLength(
        code=code, n_bins=n_bins, bits=code_bits(counts, len(numbers)), fvu=_fvu(x, decode(rounded).to(x))
    )


def code_bits(counts: Int[Tensor, "latent bin"], n_rows: int) -> float:
    """sum over latents of H(fires) + P(fires) H(bin | fires), in bits, from how often each bin occurs in `n_rows` rows.

    The same as the entropy of "which bin, or none".
    """
    silent = n_rows - counts.sum(1, keepdim=True)
    p = torch.cat([counts, silent], 1).double() / n_rows
    # `+ 0.0` turns the -0.0 of a code that never speaks into 0.0.
    return -float(torch.special.xlogy(p, p).sum() / math.log(2)) + 0.0


def _fvu(x: Tensor, x_hat: Tensor) -> float:
    x = x.double()
    return float((x - x_hat.double()).square().sum() / (x - x.mean(0)).square().sum())
