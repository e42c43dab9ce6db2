"""The training step in plain dense torch: what every faster kernel must agree with, values and gradients.

Shapes: x [batch d_in] is normalised and centred; b_dec is subtracted from the encoder's input. Losses are summed over
features and averaged over the batch.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saekit.kernels.types import Step, Weights


def pre_activations(x: Float[Tensor, "batch d_in"], weights: Weights) -> Float[Tensor, "batch d_sae"]:
    """The encoder's affine map, before the nonlinearity."""
    return torch.addmm(weights.b_enc, x - weights.b_dec, weights.W_enc_T.T)


def relu_step(
    x: Float[Tensor, "batch d_in"],
    pre_acts: Float[Tensor, "batch d_sae"],
    weights: Weights,
    weigh_by_decoder: bool,
) -> Step:
    """ReLU latents; the penalty is their L1 norm, each weighted by its decoder row's norm if `weigh_by_decoder`."""
    latents = pre_acts.relu()
    x_hat = torch.addmm(weights.b_dec, latents, weights.W_dec)
    column_sums = latents.sum(0, dtype=x.dtype)
    if weigh_by_decoder:
        column_sums = column_sums * weights.W_dec.norm(dim=1)
    return _step(x, x_hat, latents, column_sums.sum() / x.shape[0])


def topk_latents(pre_acts: Float[Tensor, "batch d_sae"], k: int) -> Float[Tensor, "batch d_sae"]:
    """The k largest pre-activations of each row, where positive; zero elsewhere (Gao et al. 2024, arXiv:2406.04093)."""
    values, indices = pre_acts.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre_acts).scatter(1, indices, values.relu())


def batch_topk_latents(pre_acts: Float[Tensor, "batch d_sae"], n: int) -> Float[Tensor, "batch d_sae"]:
    """The n largest pre-activations of the whole batch, where positive (Bussmann et al. 2024, arXiv:2412.06410)."""
    return topk_latents(pre_acts.reshape(1, -1), n).reshape(pre_acts.shape)


def batch_topk_step(
    x: Float[Tensor, "batch d_in"],
    pre_acts: Float[Tensor, "batch d_sae"],
    weights: Weights,
    n: int,
    k_aux: int,
    is_dead: Bool[Tensor, " d_sae"],
) -> Step:
    """As `topk_step` with the n largest pre-activations of the whole batch."""
    latents = batch_topk_latents(pre_acts, n)
    x_hat = torch.addmm(weights.b_dec, latents, weights.W_dec)
    return _step(x, x_hat, latents, auxk(x - x_hat, pre_acts, weights, k_aux, is_dead))


def topk_step(
    x: Float[Tensor, "batch d_in"],
    pre_acts: Float[Tensor, "batch d_sae"],
    weights: Weights,
    k: int,
    k_aux: int,
    is_dead: Bool[Tensor, " d_sae"],
) -> Step:
    """TopK latents; the penalty is AuxK (see `auxk`), zero while no latent is dead."""
    latents = topk_latents(pre_acts, k)
    x_hat = torch.addmm(weights.b_dec, latents, weights.W_dec)
    return _step(x, x_hat, latents, auxk(x - x_hat, pre_acts, weights, k_aux, is_dead))


def auxk(
    error: Float[Tensor, "batch d_in"],
    pre_acts: Float[Tensor, "batch d_sae"],
    weights: Weights,
    k_aux: int,
    is_dead: Bool[Tensor, " d_sae"],
) -> Float[Tensor, ""]:
    """Share of the error that the `k_aux` largest dead latents of each row fail to explain, times d_in.

    Gao et al. 2024 (arXiv:2406.04093), appendix A.2: dead latents are trained on what the living ones leave over. The
    factor d_in puts it on the scale of a reconstruction loss whose inputs have E||x||^2 = d_in. The error is a fixed
    target; gradients reach the decoder, the encoder and the biases through the dead latents. Zero if none is dead.
    """
    if k_aux == 0:
        return error.new_zeros(())
    latents = topk_latents(pre_acts.masked_fill(~is_dead, -torch.inf), min(k_aux, pre_acts.shape[1]))
    return torch.where(is_dead.any(), auxk_of(latents, weights.W_dec, error), 0.0)


def auxk_of(
    latents: Float[Tensor, "batch n_latents"],
    W_dec: Float[Tensor, "n_latents d_in"],
    error: Float[Tensor, "batch d_in"],
) -> Float[Tensor, ""]:
    """Share of `error`, a fixed target, that `latents` with decoder rows `W_dec` fail to explain, times d_in."""
    target = error.detach()
    missed = (latents @ W_dec - target).square().sum()
    scale = target.shape[1] / target.square().sum().clamp_min(torch.finfo(target.dtype).tiny)
    return missed * scale


def _step(x: Tensor, x_hat: Tensor, latents: Tensor, penalty: Tensor) -> Step:
    reconstruction = (x_hat - x).square().sum() / x.shape[0]
    return Step(reconstruction, penalty, x_hat.detach(), latents.detach(), (latents.detach() > 0).sum(0))
