"""What the weights alone say about a dictionary: how near its directions lie and how many they really are."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.autoencoders import SparseAutoencoder
from saekit.index.dictionary import nearest_rows

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
        latents, cosines = nearest_rows(W_dec, 1)
        nearest, cosine = latents[:, 0].cpu().numpy(), cosines[:, 0].cpu().numpy()
    else:
        nearest, cosine = np.full(1, -1, dtype=np.int32), np.full(1, np.nan, dtype=np.float32)
    return Geometry(
        nearest_cosine=cosine,
        nearest_latent=nearest,
        encoder_decoder_cosine=torch.nn.functional.cosine_similarity(sae.W_enc.float().T, W_dec, dim=1).cpu().numpy(),
        effective_rank=effective_rank(W_dec),
    )


def effective_rank(matrix: Float[Tensor, "rows columns"]) -> float:
    """exp of the entropy of the singular values divided by their sum: n for n equal ones, 1 for a single one."""
    wide = matrix.double()
    gram = wide.T @ wide if wide.shape[0] > wide.shape[1] else wide @ wide.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
