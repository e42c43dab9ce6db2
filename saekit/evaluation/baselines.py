"""What a reconstruction must beat, and the identity it cannot: reconstructions without anything learned from a loss."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Reconstruct = Callable[[Float[Tensor, "batch d_in"]], Float[Tensor, "batch d_in"]]

_CHUNK_ELEMENTS = 2**24  # of the [rows k d_in] block that the random dictionary solves at a time: 64 MiB


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A named reconstruction of rows, to be measured like an autoencoder's."""

    name: str
    k: int | None
    """Numbers it keeps of each row, to be compared with an autoencoder's L0; None where that has no meaning."""
    reconstruct: Reconstruct
    """Takes and returns raw activations, float32 [batch d_in]."""


def identity() -> Baseline:
    """The activations themselves: FVU 0 and everything recovered, or the measurement is broken."""
    return Baseline(name="identity", k=None, reconstruct=lambda x: x)


def mean_ablation(mean: Float[Tensor, " d_in"]) -> Baseline:
    """The same vector for every row: FVU 1 when it is the mean of the rows it is measured on."""
    return Baseline(name="mean", k=0, reconstruct=lambda x: mean.to(x).expand_as(x))


def zero_ablation() -> Baseline:
    """Zeros for every row. Far from the mean it is a weaker opponent than `mean_ablation`."""
    return Baseline(name="zero", k=0, reconstruct=torch.zeros_like)


def principal_directions(covariance: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Orthonormal columns (float64), that of most variance first."""
    return torch.linalg.eigh(covariance.double()).eigenvectors.flip(1)


def pca(mean: Float[Tensor, " d_in"], covariance: Float[Tensor, "d_in d_in"], k: int) -> Baseline:
    """Projection on the `k` directions of most variance: the best any `k` fixed directions can do for the FVU.

    An autoencoder chooses its latents row by row and should do better at L0 = k. `k` above d_in means all directions.
    """
    k = min(k, len(mean))
    directions = principal_directions(covariance)[:, :k]

    def reconstruct(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        centre, basis = mean.to(x), directions.to(x)
        return centre + (x - centre) @ basis @ basis.T

    return Baseline(name="pca", k=k, reconstruct=reconstruct)


def pca_of_equal_fvu(
    mean: Float[Tensor, " d_in"],
    covariance: Float[Tensor, "d_in d_in"],
    rows: Iterable[Float[Tensor, "_ d_in"]],
    fvu: float,
) -> Baseline:
    """`pca` with as few directions as explain `rows` as well as `fvu`: how many dense numbers an autoencoder is worth.

    All directions when even they do not reach it, which happens for an `fvu` of almost 0 alone.
    """
    d_in = len(mean)
    directions = principal_directions(covariance)
    energy = torch.zeros(d_in, dtype=torch.float64)
    total, first, n = 0.0, torch.zeros(d_in, dtype=torch.float64), 0
    for batch in rows:
        centred = (batch.double().cpu() - mean.double().cpu()) @ directions.cpu()
        energy += centred.square().sum(0)
        first += centred.sum(0)
        total += float(centred.square().sum())
        n += len(batch)
    variance = total - float(first.square().sum()) / max(n, 1)
    left = (total - energy.cumsum(0)).clamp(min=0)
    reached = torch.nonzero(left <= fvu * variance)
    k = int(reached[0]) + 1 if len(reached) else d_in
    return dataclasses.replace(pca(mean, covariance, k), name="pca, equal fvu")


def random_dictionary(mean: Float[Tensor, " d_in"], d_sae: int, k: int, seed: int = 0) -> Baseline:
    """The best `k` of `d_sae` random directions for each row, with least-squares coefficients.

    Directions are uniform on the sphere, chosen by their inner product with the centred row. Fitting the coefficients
    exactly makes this a strong baseline: an encoder of inner products alone would do worse.
    """
    d_in = len(mean)
    k = min(k, d_in, d_sae)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=-1)
    n_rows = max(1, _CHUNK_ELEMENTS // max(k * d_in, d_sae))

    def reconstruct(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        centre, dictionary = mean.to(x), directions.to(x)
        ridge = 1e-6 * torch.eye(k, dtype=x.dtype, device=x.device)
        parts = []
        for rows in (x - centre).split(n_rows):
            scores, chosen = (rows @ dictionary.T).topk(k, dim=-1)
            basis = dictionary[chosen]
            gram = basis @ basis.transpose(1, 2) + ridge
            coefficients = torch.linalg.solve(gram, scores.unsqueeze(-1))
            parts.append((basis.transpose(1, 2) @ coefficients).squeeze(-1))
        return centre + torch.cat(parts) if parts else x

    return Baseline(name="random dictionary", k=k, reconstruct=reconstruct)
