"""Where a sparse autoencoder's latents and decoder bias start, and start again, from data."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.autoencoders.sparse import SparseAutoencoder
from saekit.errors import ConfigError, InputError


@torch.no_grad()
def start_from_data_(sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], blend: float = 0.8, seed: int = 0) -> None:
    """Turn every latent to a row of `x`, raw activations: `blend` of its direction and the rest of the random one.

    Rows are drawn without repeats where there are d_sae of them. Set the input moments first. Fewer latents are dead
    later on (saev's data-point initialisation). Raises `InputError` when there are no rows.
    """
    if not 0 <= blend <= 1:
        raise ConfigError(f"blend={blend} is not in [0, 1].")
    if len(x) == 0:
        raise InputError("There are no rows for the latents to start from.")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    order = order.repeat(-(-sae.config.d_sae // len(x)))[: sae.config.d_sae]
    norms = sae.W_dec.norm(dim=1, keepdim=True)
    mixed = blend * _directions(sae, x[order.to(x.device)]) + (1 - blend) * sae.W_dec / norms
    sae.W_dec.copy_(mixed * norms / mixed.norm(dim=1, keepdim=True))
    sae.W_enc_T.copy_(sae.W_dec)


@torch.no_grad()
def start_bias_at_median_(sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> None:
    """Set b_dec to the geometric median of `x`, raw activations (Bricken et al. 2023, Gao et al. 2024).

    Without it b_dec starts at the mean, to which inputs are centred.
    """
    sae.b_dec.copy_(geometric_median(sae.normalize(x.to(sae.W_dec.device))))


def geometric_median(x: Float[Tensor, "rows d_in"], n_steps: int = 100) -> Float[Tensor, " d_in"]:
    """The point whose distances to the rows have the least sum, by Weiszfeld's iteration from the mean.

    Unlike the mean it is not moved by a few rows that are far away. Raises `InputError` when there are no rows.
    """
    if len(x) == 0:
        raise InputError("There are no rows to take the median of.")
    median = x.mean(0)
    for _ in range(n_steps):
        weights = 1 / (x - median).norm(dim=1).clamp_min(torch.finfo(x.dtype).eps)
        moved = weights @ x / weights.sum()
        if torch.allclose(moved, median, rtol=1e-6, atol=0):
            return moved
        median = moved
    return median


@torch.no_grad()
def resample_latents_(sae: SparseAutoencoder, dead: Int[Tensor, " n"], x: Float[Tensor, "n d_in"]) -> None:
    """Start these latents again, each in the direction of a row of `x`, raw activations.

    Decoder rows get the mean norm of the living ones (1 for a unit decoder), encoder rows a fifth of it, biases and
    parameters of the sparsity their first values (Bricken et al. 2023).
    """
    is_alive = ~sae.is_dead
    is_alive[dead] = False
    directions = _directions(sae, x)
    for weights, share in ((sae.W_dec, 1.0), (sae.W_enc_T, 0.2)):
        norms = weights.norm(dim=1)
        norm = norms[is_alive].mean() if bool(is_alive.any()) else norms.mean()
        weights[dead] = directions * norm * share
    sae.b_enc[dead] = sae.sparsifier.initial_bias
    which = torch.zeros_like(is_alive)
    which[dead] = True
    sae.sparsifier.reset_latents_(which)
    sae.tokens_since_fired[dead] = 0


def _directions(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    rows = sae.normalize(x.to(sae.W_dec.device)) - sae.b_dec
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
