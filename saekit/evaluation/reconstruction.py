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
        # One conversion for all the sums; beside encoding, which is d_sae times the work, it costs next to nothing.
        dtype = accumulator_dtype(rows.device)
        x = rows.to(dtype)
        x_hat = reconstruct(rows.float()).to(dtype)
        middle = centre.to(x)
        error, x_centred, hat_centred = x - x_hat, x - middle, x_hat - middle
        squared_error, squared_deviation = error.square().sum(-1), x_centred.square().sum(-1)
        for name, value in {
            "x": x_centred.sum(0),
            "x_hat": hat_centred.sum(0),
            "error": squared_error.sum(),
            "deviation": squared_deviation.sum(),
            "cosine": torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).sum(),
            "norm_ratio": _ratios(x_hat.norm(dim=-1), x.norm(dim=-1)).sum(),
            "row_fvu": _ratios(squared_error, squared_deviation).sum(),
            "x_x": x.square().sum(),
            "hat_hat": x_hat.square().sum(),
            "x_hat_product": (x * x_hat).sum(),
            "hat_hat_centred": hat_centred.square().sum(),
            "product_centred": (x_centred * hat_centred).sum(),
        }.items():
            sums[name] = sums[name] + value if name in sums else value
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
