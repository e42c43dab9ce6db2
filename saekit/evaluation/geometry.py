"""What the weights alone say about a dictionary: how near its directions lie and how many they really are."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.autoencoders import SparseAutoencoder

NEAR_DUPLICATE = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Of the decoder's rows, one to a latent."""

    nearest_cosine: Float[np.ndarray, " d_sae"]
    """Cosine with the most similar other row."""
    nearest_latent: Int[np.ndarray, " d_sae"]
    encoder_decoder_cosine: Float[np.ndarray, " d_sae"]
    """Cosine of a latent's column of W_enc and its row of W_dec."""
    effective_rank: float
    """Exponential of the entropy of the normalised singular values of W_dec (Roy and Vetterli 2007); d_in at most."""


@torch.no_grad()
def decoder_geometry(sae: SparseAutoencoder) -> Geometry:
    """Nearest neighbours, encoder against decoder, and effective rank."""
    W_dec = sae.W_dec.float()
    if len(W_dec) > 1:
        nearest, cosine = _nearest_row(W_dec)
    else:
        nearest, cosine = np.full(1, -1, dtype=np.int32), np.full(1, np.nan, dtype=np.float32)
    return Geometry(
        nearest_cosine=cosine,
        nearest_latent=nearest,
        encoder_decoder_cosine=torch.nn.functional.cosine_similarity(sae.W_enc.float().T, W_dec, dim=1).cpu().numpy(),
        effective_rank=effective_rank(W_dec),
    )


def _nearest_row(
    W_dec: Float[Tensor, "d_sae d_in"],
) -> tuple[Int[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
    """The other row of the highest cosine, and that cosine; a zero row has cosine 0."""
    unit = torch.nn.functional.normalize(W_dec, dim=1)
    found = []
    for rows in torch.arange(len(unit), device=unit.device).split(max(1, 2**25 // len(unit))):
        cosine = unit[rows] @ unit.T
        cosine[rows - rows[0], rows] = -torch.inf
        found.append(cosine.max(dim=1))
    cosines = torch.cat([each.values for each in found]).clamp(-1, 1)
    return torch.cat([each.indices for each in found]).int().cpu().numpy(), cosines.cpu().numpy()


def effective_rank(matrix: Float[Tensor, "rows columns"]) -> float:
    """exp of the entropy of the singular values divided by their sum: n for n equal ones, 1 for a single one."""
    wide = matrix.double()
    gram = wide.T @ wide if wide.shape[0] > wide.shape[1] else wide @ wide.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
