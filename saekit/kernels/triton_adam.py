"""Adam over the rows of a matrix in one pass on a GPU: projection, clipping, update and renormalisation together."""

# Kernels take pointers and numbers that only Triton has types for.
# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _row_statistics(gradient, parameter, along, squares, d, HELD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    features = tl.arange(0, BLOCK)
    at = row.to(tl.int64) * d + features
    g = tl.load(gradient + at, mask=features < d, other=0.0)
    square = tl.sum(g * g, axis=0)
    if HELD:
        w = tl.load(parameter + at, mask=features < d, other=0.0)
        dot = tl.sum(g * w, axis=0)
        tl.store(along + row, dot)
        rest = g - dot * w
        square = tl.sum(rest * rest, axis=0)
    tl.store(squares + row, square)


@triton.jit
def _adam_rows(
    parameter, gradient, exp_avg, exp_avg_sq, along, factors, beta1, beta2, eps, d, HELD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    features = tl.arange(0, BLOCK)
    inside = features < d
    at = row.to(tl.int64) * d + features
    scale, step_size, root = tl.load(factors), tl.load(factors + 1), tl.load(factors + 2)
    w = tl.load(parameter + at, mask=inside, other=0.0)
    g = tl.load(gradient + at, mask=inside, other=0.0)
    if HELD:
        g -= tl.load(along + row) * w
    g = g / scale
    m = tl.load(exp_avg + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    w -= step_size * m / (tl.sqrt(v) / root + eps)
    if HELD:
        w = w / tl.sqrt(tl.sum(tl.where(inside, w * w, 0.0), axis=0))
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    tl.store(parameter + at, w, mask=inside)


def row_statistics(gradient: Tensor, parameter: Tensor, held: bool) -> tuple[Tensor, Tensor]:
    """Each row's part of the gradient along the parameter's (if `held`), and the square of what is left of it."""
    n_rows, d = gradient.shape
    along, squares = gradient.new_empty(n_rows), gradient.new_empty(n_rows)
    _row_statistics[(n_rows,)](gradient, parameter, along, squares, d, held, triton.next_power_of_2(d))
    return along, squares


def adam_rows_(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    along: Tensor,
    step: Tensor,
    scale: Tensor | None,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    held: bool,
) -> None:
    """Update `tensors`: a parameter, its gradient (which is only read), exp_avg and exp_avg_sq."""
    parameter = tensors[0]
    n_rows, d = parameter.shape
    one = torch.ones((), device=parameter.device)
    factors = torch.stack(
        [one if scale is None else scale, lr / (1 - betas[0] ** step), (1 - betas[1] ** step).sqrt()]
    ).to(parameter.dtype)
    _adam_rows[(n_rows,)](*tensors, along, factors, *betas, eps, d, held, triton.next_power_of_2(d))
