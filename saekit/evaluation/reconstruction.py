"""How much of the activations a reconstruction keeps, in one float64 pass over rows that know their document."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.errors import InputError
from saekit.evaluation.baselines import Reconstruct
from saekit.evaluation.intervals import Interval, bootstrap_ratio
from saekit.metrics import accumulator_dtype

RowChunk = tuple[Float[Tensor, "batch d_in"], Int[np.ndarray, " batch"]]
"""Rows of activations, and the document (any integers) that each belongs to."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How near x_hat is to x over a whole set of rows."""

    n_tokens: int
    n_documents: int
    fvu: float
    """sum |x - x_hat|^2 / sum |x - mean|^2 with the per-dimension mean of this very set: 0 perfect, 1 the mean."""
    fvu_interval: Interval | None
    """95 % bootstrap interval over documents; None for a single document."""
    explained_variance: float
    """1 - fvu."""
    mse: float
    """Mean squared error per element."""
    cosine: float
    """Mean over rows of cos(x, x_hat), about zero: a large common mean makes it flattering."""
    reconstruction_bias: float
    """E |x_hat|^2 / E <x, x_hat> (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 10): 1 unbiased, below 1 shrunk."""
    reconstruction_bias_centred: float
    """The same about the mean of the rows, which could hide the shrinkage if large. NaN for a constant x_hat."""
    norm_ratio: float
    """Mean over rows of |x_hat| / |x|, a zero row counting as 0."""
    published: dict[str, float]
    """Other toolkits' numbers under their names, to compare with tables that print them; see `published_variants`."""


@torch.no_grad()
def measure_reconstruction(
    reconstruct: Reconstruct,
    chunks: Iterable[RowChunk],
    centre: Float[Tensor, " d_in"],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Reconstruction:
    """Reconstruct every chunk once and measure the whole.

    `centre` is any vector near the mean of the rows (the store's recorded mean); sums are taken about it so that they
    lose no digits, and moved to the rows' own mean at the end. Raises `InputError` for no rows.
    """
    sums: dict[str, Tensor] = {}
    documents: list[np.ndarray] = []
    errors: list[Tensor] = []
    deviations: list[Tensor] = []
    n, d_in = 0, len(centre)
    for rows, document in chunks:
        x_hat = reconstruct(rows.float())
        # 64 rows at a time stay in a CPU's cache: six times faster than float64 copies of the whole chunk.
        size = 64 if rows.device.type == "cpu" else max(1, len(rows))
        parts = [_sums(*part, centre) for part in zip(rows.split(size), x_hat.split(size), strict=True)]
        for name in parts[0][0]:
            value = torch.stack([part[name] for part, _, _ in parts]).sum(0)
            sums[name] = sums[name] + value if name in sums else value
        squared_error = torch.cat([error for _, error, _ in parts])
        squared_deviation = torch.cat([deviation for _, _, deviation in parts])
        documents.append(document)
        errors.append(squared_error)
        deviations.append(squared_deviation)
        n += len(rows)
    if n == 0:
        raise InputError("There are no rows to measure a reconstruction on.")
    total = {name: value.double().cpu() for name, value in sums.items()}
    shift, hat_shift = total["x"] / n, total["x_hat"] / n
    squared_deviation_total = float(total["deviation"] - n * shift.square().sum())
    # From sums about `centre` to sums about the mean of x, which lies `shift` away from it.
    hat_hat = float(total["hat_hat_centred"] - n * (hat_shift * shift * 2 - shift.square()).sum())
    product = float(total["product_centred"] - n * (shift * hat_shift).sum())
    fvu = _ratio(float(total["error"]), squared_deviation_total)
    _, which = np.unique(np.concatenate(documents), return_inverse=True)
    error_of = np.bincount(which, weights=torch.cat(errors).double().cpu().numpy())
    # The shift of the mean, spread over documents in proportion: their sum is then the denominator of the fvu itself.
    proportion = _ratio(squared_deviation_total, float(total["deviation"]))
    deviation_of = np.bincount(which, weights=torch.cat(deviations).double().cpu().numpy() * proportion)
    return Reconstruction(
        n_tokens=n,
        n_documents=len(error_of),
        fvu=fvu,
        fvu_interval=bootstrap_ratio(error_of, deviation_of, n_replicates=n_bootstrap, seed=seed),
        explained_variance=1 - fvu,
        mse=float(total["error"]) / (n * d_in),
        cosine=float(total["cosine"]) / n,
        reconstruction_bias=_bias(float(total["x_x"]), float(total["hat_hat"]), float(total["x_hat_product"])),
        reconstruction_bias_centred=_bias(squared_deviation_total, hat_hat, product),
        norm_ratio=float(total["norm_ratio"]) / n,
        published=published_variants(
            error=float(total["error"]) / n,
            squared_norm=float(total["x_x"]) / n,
            row_fvu=float(total["row_fvu"]) / n,
            d_in=d_in,
        ),
    )


def _sums(
    rows: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"], centre: Float[Tensor, " d_in"]
) -> tuple[dict[str, Tensor], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Sums over the rows, and of every row the squared error and the squared distance to `centre`."""
    dtype = accumulator_dtype(rows.device)
    x, hat = rows.to(dtype), x_hat.to(dtype)
    middle = centre.to(x)
    difference, x_centred, hat_centred = x - hat, x - middle, hat - middle
    dot = torch.linalg.vecdot
    error, deviation = dot(difference, difference), dot(x_centred, x_centred)
    x_x, hat_hat, product, hat_deviation = dot(x, x), dot(hat, hat), dot(x, hat), dot(hat_centred, hat_centred)
    return (
        {
            "x": x_centred.sum(0),
            "x_hat": hat_centred.sum(0),
            "error": error.sum(),
            "deviation": deviation.sum(),
            "cosine": _ratios(product, (x_x * hat_hat).sqrt()).sum(),
            "norm_ratio": _ratios(hat_hat.sqrt(), x_x.sqrt()).sum(),
            "row_fvu": _ratios(error, deviation).sum(),
            "x_x": x_x.sum(),
            "hat_hat": hat_hat.sum(),
            "x_hat_product": product.sum(),
            "hat_hat_centred": hat_deviation.sum(),
            "product_centred": dot(x_centred, hat_centred).sum(),
        },
        error,
        deviation,
    )


SAEBENCH_BATCH = 2048


def published_variants(*, error: float, squared_norm: float, row_fvu: float, d_in: int) -> dict[str, float]:
    """What other toolkits' published formulas give, so that their tables can be compared with; two of them are wrong.

    `error` is E|x - x_hat|^2, `squared_norm` E|x|^2 and `row_fvu` E[|x - x_hat|^2 / |x - mean|^2].

    - `sae_lens_legacy_explained_variance` (also SAEBench's `explained_variance_legacy`, the one in its paper):
      1 - `row_fvu`. A mean of ratios: rows near the mean dominate. They centre on each batch, we on the whole store.
    - `saebench_explained_variance` (up to 0.6; SAELens before 6.54): 1 - E|x - x_hat|^2 / (E|x|^2 - m^2), where m,
      meant to be the mean activation, is the mean over dimensions of E[x_d^2]. It has no meaning as a variance.
    - `saebench_mse`: E|x - x_hat|^2 divided by the tokens of a batch, here its default of 2,048.
    """
    denominator = squared_norm - (squared_norm / d_in) ** 2
    return {
        "sae_lens_legacy_explained_variance": 1 - row_fvu,
        "saebench_explained_variance": 1 - error / denominator if denominator else math.nan,
        "saebench_mse": error / SAEBENCH_BATCH,
    }


def _ratios(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.where(below > 0, 1.0), 0.0)


def _ratio(above: float, below: float) -> float:
    if below == 0:
        return math.nan if above == 0 else math.inf
    return above / below


def _bias(x_x: float, hat_hat: float, product: float) -> float:
    # A constant x_hat is uncorrelated with x but for rounding; its bias would be noise over noise.
    return hat_hat / product if abs(product) > 1e-9 * math.sqrt(x_x * hat_hat) else math.nan
