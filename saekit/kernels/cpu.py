"""The exact sparse step on the CPU: one dense encoder product, everything after it on the active entries only.

The active entries, sorted by row and by latent, are the pattern of four sparse products: decode, the gradients of the
latents, and the gradients of the two weight matrices. b_dec's gradient through the encoder is a matrix-vector product.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from saekit.kernels.buffers import GradientBuffers
from saekit.kernels.pattern import _at_pattern, _by_latent, _ByLatent, _take_the_notice_that_csr_is_in_beta
from saekit.kernels.reference import topk_latents
from saekit.kernels.selection import active_batch_topk, active_relu, active_topk
from saekit.kernels.types import SparseLatents, Step, Weights


def relu_step(
    x: Float[Tensor, "batch d_in"],
    weights: Weights,
    weigh_by_decoder: bool,
    max_density: float = 1.0,
    buffers: GradientBuffers | None = None,
) -> Step | None:
    """As `reference.relu_step` with its encoder; None when more than `max_density` of the entries are active."""
    with torch.no_grad():
        active = active_relu(x - weights.b_dec, weights, max_density)
    if active is None:
        return None
    reconstruction, l1, x_hat = _ReluStep.apply(x, *weights, active, weigh_by_decoder, buffers or GradientBuffers())
    return Step(reconstruction, l1, x_hat, active, _n_fired(active, weights))


def topk_step(
    x: Float[Tensor, "batch d_in"],
    weights: Weights,
    k: int,
    k_aux: int,
    is_dead: Bool[Tensor, " d_sae"],
    buffers: GradientBuffers | None = None,
) -> Step:
    """As `reference.topk_step` with its encoder. AuxK is computed on the dead latents' rows only."""
    with torch.no_grad():
        active = active_topk(x - weights.b_dec, weights, k)
    dead = is_dead.nonzero().view(-1) if k_aux > 0 else is_dead.new_empty(0, dtype=torch.int64)
    reconstruction, auxk, x_hat = _TopKStep.apply(x, *weights, active, k_aux, dead, buffers or GradientBuffers())
    return Step(reconstruction, auxk, x_hat, active, _n_fired(active, weights))


def batch_topk_step(
    x: Float[Tensor, "batch d_in"],
    weights: Weights,
    n: int,
    k_aux: int,
    is_dead: Bool[Tensor, " d_sae"],
    guess: float = 0.0,
    buffers: GradientBuffers | None = None,
) -> Step:
    """As `reference.batch_topk_step` with its encoder; `guess` is `active.active_batch_topk`'s."""
    with torch.no_grad():
        active = active_batch_topk(x - weights.b_dec, weights, n, guess)
    dead = is_dead.nonzero().view(-1) if k_aux > 0 else is_dead.new_empty(0, dtype=torch.int64)
    reconstruction, auxk, x_hat = _TopKStep.apply(x, *weights, active, k_aux, dead, buffers or GradientBuffers())
    return Step(reconstruction, auxk, x_hat, active, _n_fired(active, weights))


def row_dots(a: Float[Tensor, "rows width"], b: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    """The dot product of each row of `a` with the same row of `b`, without their product as a temporary."""
    n = torch.arange(len(a) + 1, dtype=torch.int32)
    _take_the_notice_that_csr_is_in_beta()
    diagonal = torch.sparse_csr_tensor(n, n[:-1], a.new_zeros(len(a)), (len(a), len(a)), check_invariants=False)
    return torch.sparse.sampled_addmm(diagonal, a, b.T, beta=0.0).values()


class _ReluStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc_T: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        active: SparseLatents,
        weigh_by_decoder: bool,
        buffers: GradientBuffers,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_hat, error = _decode(x, W_dec, b_dec, active)
        norms = column_sums = None
        l1 = active.values.sum()
        if weigh_by_decoder:
            norms = W_dec.norm(dim=1)
            column_sums = torch.zeros_like(norms).index_add_(0, active.latents, active.values)
            l1 = column_sums @ norms
        ctx.save_for_backward(x, W_enc_T, b_enc, W_dec, b_dec)
        ctx.rest = active, error, norms, column_sums, buffers
        ctx.mark_non_differentiable(x_hat)
        return error.square().sum() / len(x), l1 / len(x), x_hat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        _refuse_second_derivatives()
        of_reconstruction, of_l1, _ = gradients
        x, W_enc_T, b_enc, W_dec, b_dec = ctx.saved_tensors
        active, error, norms, column_sums, buffers = ctx.rest
        of_x_hat = error * (2 / len(x) * of_reconstruction)
        of_l1 = of_l1 / len(x)
        pattern = _by_latent(active, len(b_enc))
        of_latents = _at_pattern(pattern, W_dec, of_x_hat)
        of_latents += of_l1 if norms is None else of_l1 * norms[pattern.columns()]
        of_W_dec = _sparse_product(pattern, pattern.values, of_x_hat, buffers.take(W_dec))
        if norms is not None:
            share = of_l1 * column_sums / norms.clamp_min(torch.finfo(norms.dtype).tiny)
            of_W_dec.addcmul_(W_dec, share[:, None])
        of_encoder = _encoder_gradients(pattern, of_latents, x - b_dec, W_enc_T, buffers)
        return *_gradients(of_encoder, of_W_dec, of_x_hat, W_enc_T), None, None, None


class _TopKStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc_T: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        active: SparseLatents,
        k_aux: int,
        dead: Tensor,
        buffers: GradientBuffers,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_hat, error = _decode(x, W_dec, b_dec, active)
        aux = _aux_forward(x - b_dec, error, Weights(W_enc_T, b_enc, W_dec, b_dec), k_aux, dead)
        ctx.save_for_backward(x, W_enc_T, b_enc, W_dec, b_dec)
        ctx.rest = active, error, aux, dead, buffers
        ctx.mark_non_differentiable(x_hat)
        auxk = aux.missed.square().sum() * aux.scale if aux is not None else x.new_zeros(())
        return error.square().sum() / len(x), auxk, x_hat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        _refuse_second_derivatives()
        of_reconstruction, of_auxk, _ = gradients
        x, W_enc_T, b_enc, W_dec, b_dec = ctx.saved_tensors
        active, error, aux, dead, buffers = ctx.rest
        centred = x - b_dec
        of_x_hat = error * (2 / len(x) * of_reconstruction)
        pattern = _by_latent(active, len(b_enc))
        of_latents = _at_pattern(pattern, W_dec, of_x_hat)
        of_W_dec = _sparse_product(pattern, pattern.values, of_x_hat, buffers.take(W_dec))
        of_W_enc_T, of_b_enc = _encoder_gradients(pattern, of_latents, centred, W_enc_T, buffers)
        if aux is not None:
            of_aux_hat = aux.missed * (2 * aux.scale * of_auxk)
            of_aux_latents = (of_aux_hat @ W_dec[dead].T).masked_fill_(aux.latents == 0, 0)
            of_W_dec.index_add_(0, dead, aux.latents.T @ of_aux_hat)
            of_W_enc_T.index_add_(0, dead, of_aux_latents.T @ centred)
            of_b_enc.index_add_(0, dead, of_aux_latents.sum(0))
        return *_gradients((of_W_enc_T, of_b_enc), of_W_dec, of_x_hat, W_enc_T), None, None, None, None


class _Aux(NamedTuple):
    latents: Float[Tensor, "batch n_dead"]
    missed: Float[Tensor, "batch d_in"]
    scale: Float[Tensor, ""]


def _aux_forward(centred: Tensor, error: Tensor, weights: Weights, k_aux: int, dead: Tensor) -> _Aux | None:
    if k_aux == 0 or len(dead) == 0:
        return None
    pre_acts = torch.addmm(weights.b_enc[dead], centred, weights.W_enc_T[dead].T)
    latents = topk_latents(pre_acts, min(k_aux, len(dead)))
    # The target is x - x_hat = -error.
    missed = torch.addmm(error, latents, weights.W_dec[dead])
    scale = error.shape[1] / error.square().sum().clamp_min(torch.finfo(error.dtype).tiny)
    return _Aux(latents, missed, scale)


def _decode(x: Tensor, W_dec: Tensor, b_dec: Tensor, active: SparseLatents) -> tuple[Tensor, Tensor]:
    """x_hat and its error."""
    x_hat = embedding_bag(
        active.latents,
        W_dec,
        active.row_offsets.int(),
        mode="sum",
        per_sample_weights=active.values,
        include_last_offset=True,
    )
    x_hat += b_dec
    return x_hat, x_hat - x


def _sparse_product(pattern: _ByLatent, values: Tensor, dense: Tensor, out: Tensor) -> Float[Tensor, "d_sae d_in"]:
    """The sparse matrix with `values` times `dense [batch d_in]`, every row of `out` written."""
    return torch.addmm(out, pattern.matrix(values), dense, beta=0, out=out)


def _encoder_gradients(
    pattern: _ByLatent, of_latents: Tensor, centred: Tensor, W_enc_T: Tensor, buffers: GradientBuffers
) -> tuple[Tensor, Tensor]:
    of_W_enc_T = buffers.take(W_enc_T)
    _sparse_product(pattern, of_latents, centred, of_W_enc_T)
    of_b_enc = of_latents.new_zeros(len(W_enc_T)).index_add_(0, pattern.columns(), of_latents)
    return of_W_enc_T, of_b_enc


def _gradients(
    of_encoder: tuple[Tensor, Tensor], of_W_dec: Tensor, of_x_hat: Tensor, W_enc_T: Tensor
) -> tuple[Any, ...]:
    """The gradients of x (none is computed) and of the four weights."""
    of_W_enc_T, of_b_enc = of_encoder
    return None, of_W_enc_T, of_b_enc, of_W_dec, of_x_hat.sum(0) - of_b_enc @ W_enc_T


def _refuse_second_derivatives() -> None:
    # `once_differentiable` lets `create_graph=True` through and takes the gradient for a constant.
    if torch.is_grad_enabled():
        raise NotImplementedError("The sparse step has no second derivatives. Type: kernel='dense'")


def _n_fired(active: SparseLatents, weights: Weights) -> Int[Tensor, " d_sae"]:
    return torch.bincount(active.latents, minlength=len(weights.b_enc))
