"""The encoder's product for dense steps: the reference's values, with one dense product less in the backward pass."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.kernels.types import Weights


def pre_activations(x: Float[Tensor, "batch d_in"], weights: Weights) -> Float[Tensor, "batch d_sae"]:
    """As `reference.pre_activations`; works under autocast."""
    pre_acts: Tensor = _Affine.apply(x, weights.W_enc_T, weights.b_enc, weights.b_dec)
    return pre_acts


class _Affine(torch.autograd.Function):
    """b_dec enters as -b_dec W_enc in every row, so its gradient is a matrix-vector product of b_enc's.

    Autograd would form the gradient of the centred input, as large a product as the encoder's own, only to sum it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc_T: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
        centred = x - b_dec
        pre_acts = torch.addmm(b_enc, centred, W_enc_T.T)
        ctx.save_for_backward(centred.to(pre_acts.dtype), W_enc_T)
        return pre_acts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        centred, W_enc_T = ctx.saved_tensors
        x_gradient = (gradient @ W_enc_T.to(gradient.dtype)).to(W_enc_T.dtype) if ctx.needs_input_grad[0] else None
        W_enc_T_gradient = (gradient.T @ centred).to(W_enc_T.dtype)
        b_enc_gradient = gradient.sum(0, dtype=W_enc_T.dtype)
        return x_gradient, W_enc_T_gradient, b_enc_gradient, -(b_enc_gradient @ W_enc_T)
