"""`Entries` on the CPU: those that were asked for, found after one dense product, and sparse products for the rest.

Entries are held by latent, then by row, so that both weight gradients read and write each latent's row once.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from saekit.kernels import dense, reference
from saekit.kernels.active import sort_stably
from saekit.kernels.buffers import GradientBuffers
from saekit.kernels.cpu import _at_pattern, _ByLatent, _refuse_second_derivatives, _sparse_product
from saekit.kernels.entries import Decoded, Entries
from saekit.kernels.types import SparseLatents, Step, Weights


class CpuEntries(Entries):
    """The entries of `found`, whose values are pre-activations of `x`."""

    def __init__(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, found: SparseLatents, buffers: GradientBuffers
    ) -> None:
        self.n_rows = len(x)
        self._x, self._weights, self._buffers = x, weights, buffers
        self._pattern, order = _sorted(found, len(weights.b_enc))
        self._columns = self._pattern.columns()
        # Decoding reads the entries by row: `_place[i]` is where the i-th of them stands by latent.
        self._place = torch.empty_like(order)
        self._place[order] = torch.arange(len(order))
        self._row_offsets, self._latents = found.row_offsets, found.latents
        encoder = weights.W_enc_T, weights.b_enc, weights.b_dec
        self.pre_acts: Tensor = _Encode.apply(x, *encoder, self._pattern, buffers)

    @property
    def _dtype(self) -> torch.dtype:
        return self._x.dtype

    def per_entry(self, of_latents: Float[Tensor, " d_sae"]) -> Tensor:
        return of_latents[self._columns]

    def per_row(self, of_entries: Tensor) -> Float[Tensor, " batch"]:
        return of_entries.new_zeros(self.n_rows).index_add(0, self._pattern.rows, of_entries)

    def largest(self, n: int) -> Tensor:
        if len(self.pre_acts) > n:
            raise ValueError(f"{len(self.pre_acts)} entries were found where the {n} largest were to be.")
        return self.pre_acts

    def decode(
        self, latents: Tensor, prefixes: Sequence[int] = (), with_norms: bool = False, frozen: bool = False
    ) -> Decoded:
        W_dec, b_dec = self._weights.W_dec, self._weights.b_dec
        if frozen:
            W_dec, b_dec = W_dec.detach(), b_dec.detach()
        bounds = (0, *prefixes, len(W_dec))
        error, prefix_error, norms, x_hat = _Decode.apply(latents, W_dec, b_dec, self, bounds, with_norms)
        return Decoded(error, prefix_error, x_hat, norms)

    def auxk(
        self, x_hat: Float[Tensor, "batch d_in"], k_aux: int, is_dead: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, ""]:
        n_dead = int(is_dead.sum())
        if k_aux == 0 or n_dead == 0:
            return x_hat.new_zeros(())
        latents = reference.topk_latents(self.dead_pre_acts(is_dead), min(k_aux, n_dead))
        return reference.auxk_of(latents, self._weights.W_dec[is_dead], self._x - x_hat)

    def dead_pre_acts(self, is_dead: Bool[Tensor, " d_sae"]) -> Float[Tensor, "batch n_dead"]:
        W_enc_T, b_enc, _, b_dec = self._weights
        dead = Weights(W_enc_T[is_dead], b_enc[is_dead], W_enc_T, b_dec)
        return dense.pre_activations(self._x, dead)

    def step(self, decoded: Decoded, penalty: Float[Tensor, ""], latents: Tensor) -> Step:
        values = latents.detach()[self._place]
        is_active = values > 0
        n_before = torch.cat([self._row_offsets.new_zeros(1), is_active.cumsum(0)])
        active = SparseLatents(n_before[self._row_offsets], self._latents[is_active], values[is_active])
        n_fired = torch.bincount(active.latents, minlength=len(self._weights.b_enc))
        return Step(decoded.error, penalty, decoded.x_hat, active, n_fired)


class _Encode(torch.autograd.Function):
    """The pre-activations at a pattern; their values are known from finding it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc_T: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        pattern: _ByLatent,
        buffers: GradientBuffers,
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc_T, b_dec)
        ctx.rest = pattern, buffers
        return pattern.values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        _refuse_second_derivatives()
        (of_pre_acts,) = gradients
        x, W_enc_T, b_dec = ctx.saved_tensors
        pattern, buffers = ctx.rest
        of_W_enc_T = _sparse_product(pattern, of_pre_acts, x - b_dec, buffers.take(W_enc_T))
        of_b_enc = of_pre_acts.new_zeros(len(W_enc_T)).index_add_(0, pattern.columns(), of_pre_acts)
        return None, of_W_enc_T, of_b_enc, -(of_b_enc @ W_enc_T), None, None


class _Decode(torch.autograd.Function):
    """Squared errors of the prefixes of the code that end at `bounds[1:]`, and the norms of the decoder's rows."""

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        entries: CpuEntries,
        bounds: tuple[int, ...],
        with_norms: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, x_hat, errors = entries._x, b_dec.expand_as(entries._x), []
        by_row = latents[entries._place]
        for start, stop in pairwise(bounds):
            of_latents, offsets, values = entries._latents, entries._row_offsets, by_row
            if len(bounds) > 2:
                is_inside = (of_latents >= start) & (of_latents < stop)
                n_before = torch.cat([offsets.new_zeros(1), is_inside.cumsum(0)])
                of_latents, offsets, values = of_latents[is_inside], n_before[offsets], values[is_inside]
            # Latents and offsets of one type, which embedding_bag asks for.
            bags = embedding_bag(
                of_latents,
                W_dec,
                offsets.int(),
                mode="sum",
                per_sample_weights=values,
                include_last_offset=True,
            )
            x_hat = x_hat + bags
            errors.append(x_hat - x)
        squared = torch.stack([error.square().sum() for error in errors]) / len(x)
        norms = W_dec.norm(dim=1) if with_norms else torch.ones_like(W_dec[:, 0])
        ctx.save_for_backward(latents, W_dec)
        ctx.rest = entries, bounds, errors, norms if with_norms else None
        ctx.mark_non_differentiable(x_hat)
        return squared[-1], squared[:-1].sum(), norms, x_hat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        _refuse_second_derivatives()
        of_error, of_prefix_error, of_norms, _ = gradients
        latents, W_dec = ctx.saved_tensors
        entries, bounds, errors, norms = ctx.rest
        pattern: _ByLatent = entries._pattern
        is_trained = ctx.needs_input_grad[1]
        of_W_dec = entries._buffers.take(W_dec) if is_trained else None
        of_latents = torch.empty_like(latents)
        of_x_hat = errors[-1] * (2 / len(errors[-1]) * of_error)
        # The last group of latents takes part in one reconstruction, the first in all of them.
        for i in reversed(range(len(errors))):
            if i < len(errors) - 1:
                of_x_hat = of_x_hat + errors[i] * (2 / len(errors[i]) * of_prefix_error)
            start, stop = bounds[i], bounds[i + 1]
            group, at = _rows_of(pattern, start, stop)
            of_latents[at] = _at_pattern(group, W_dec[start:stop], of_x_hat)
            if of_W_dec is not None:
                _sparse_product(group, latents[at], of_x_hat, of_W_dec[start:stop])
        if of_W_dec is not None and norms is not None:
            of_W_dec.addcmul_(W_dec, (of_norms / norms.clamp_min(torch.finfo(norms.dtype).tiny))[:, None])
        return of_latents, of_W_dec, of_x_hat.sum(0), None, None, None


def _rows_of(pattern: _ByLatent, start: int, stop: int) -> tuple[_ByLatent, slice]:
    """The entries of latents `start` up to `stop`, and where they stand among all."""
    if start == 0 and stop == len(pattern.offsets) - 1:
        return pattern, slice(None)
    offsets = pattern.offsets[start : stop + 1]
    at = slice(int(offsets[0]), int(offsets[-1]))
    return _ByLatent(offsets - offsets[0], pattern.rows[at], pattern.values[at], pattern.n_rows), at


def _sorted(found: SparseLatents, d_sae: int) -> tuple[_ByLatent, Tensor]:
    """The entries by latent, and the order that sorts them so."""
    latents = found.latents.numpy()
    order = sort_stably(latents, d_sae)
    offsets = np.zeros(d_sae + 1, np.int32)
    np.cumsum(np.bincount(latents, minlength=d_sae), out=offsets[1:])
    row_offsets = found.row_offsets.numpy()
    rows = np.repeat(np.arange(len(row_offsets) - 1, dtype=np.int32), np.diff(row_offsets))[order]
    by_latent = torch.from_numpy(order)
    pattern = _ByLatent(
        torch.from_numpy(offsets), torch.from_numpy(rows), found.values[by_latent], len(row_offsets) - 1
    )
    return pattern, by_latent
