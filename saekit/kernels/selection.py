"""Active entries on the CPU, found in float32 (`active`) or, for CPUs with bf16 instructions, with the help of bf16.

In bf16 the dense product only says which entries can be active: its inputs carry two more columns that raise every
entry by a bound of its rounding errors, so that none is missed. The few that pass are computed in float32. The result
is the same set of entries as without, with values as exact.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saekit.kernels import active
from saekit.kernels.pattern import _at_pattern, _by_latent
from saekit.kernels.types import SparseLatents, Weights

_UNIT = 2.0**-8
"""Largest relative error of rounding to bf16."""
_SLACK = 1 + 4 * _UNIT
"""Raises the two bounding columns by more than their own rounding."""

_in_bf16: ContextVar[bool] = ContextVar("saekit_selection_in_bf16", default=False)


@contextmanager
def bf16_selection(enabled: bool = True) -> Iterator[None]:
    """Within it, active entries of float32 inputs are found by a bf16 product, to the same result."""
    token = _in_bf16.set(enabled)
    try:
        yield
    finally:
        _in_bf16.reset(token)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices by instructions of its own; without, they are slower than float32."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def active_relu(
    centred: Float[Tensor, "batch d_in"], weights: Weights, max_density: float = 1.0
) -> SparseLatents | None:
    """See `active.active_relu`."""
    if not _takes_bf16(centred):
        return active.active_relu(centred, weights, max_density)
    return active_above(centred, weights, torch.zeros_like(weights.b_enc), max_density)


def active_above(
    centred: Float[Tensor, "batch d_in"],
    weights: Weights,
    floors: Float[Tensor, " d_sae"],
    max_density: float = 1.0,
) -> SparseLatents | None:
    """See `active.active_above`."""
    if not _takes_bf16(centred):
        return active.active_above(centred, weights, floors, max_density)
    candidates = _candidates(centred, weights, floors, max_density)
    if candidates is None:
        return None
    refined = _refined(candidates, centred, weights)
    return active._keep(refined, refined.rows(), refined.values > floors.detach()[refined.latents.long()])


def active_topk(centred: Float[Tensor, "batch d_in"], weights: Weights, k: int) -> SparseLatents:
    """See `active.active_topk`."""
    if not _takes_bf16(centred):
        return active.active_topk(centred, weights, k)
    product = _Product(centred, weights, torch.zeros_like(weights.b_enc))
    found = active._Found(len(centred))
    maxima = np.empty((len(centred), 0), np.float32)
    least = np.finfo(np.float32).tiny
    bound = torch.full((len(centred), 1), float(least))
    next_update = 0
    for i, (start, block) in enumerate(product.blocks(), start=1):
        if i > next_update:
            next_update = 2 * i - 1
            best = active._class_maxima(block, active._CLASSES_PER_K * k, torch.float32)
            maxima = np.concatenate([maxima, best], axis=1)
            if maxima.shape[1] >= k:
                maxima = np.partition(maxima, -k, axis=1)[:, -k:]
                # k entries are no lower than this, whatever rounding raised them by.
                bound = (torch.from_numpy(maxima[:, :1]) - product.raised_by_at_most).clamp_min(float(least))
        found.add_positions(_bits(block) >= _bits(bound.bfloat16()), start)
    refined = _refined(found.by_row(), centred, weights)
    kept = active._keep(refined, refined.rows(), refined.values > 0)
    return active._largest(kept, bound.clamp_max(float(least)), k)


def active_batch_topk(
    centred: Float[Tensor, "batch d_in"], weights: Weights, n: int, guess: float = 0.0
) -> SparseLatents:
    """See `active.active_batch_topk`; in bf16 only where n entries reach `guess`."""
    if _takes_bf16(centred) and guess > 0:
        found = active_above(centred, weights, torch.full_like(weights.b_enc, guess))
        assert found is not None
        if len(found.values) >= n:
            keep = np.zeros(len(found.values), bool)
            keep[np.argpartition(found.values.numpy(), -n)[-n:]] = True
            return active._keep(found, found.rows(), torch.from_numpy(keep))
    return active.active_batch_topk(centred, weights, n, guess)


class _Product:
    """Upper bounds, in bf16, of the pre-activations less their floors, by blocks of latents."""

    def __init__(self, centred: Tensor, weights: Weights, floors: Tensor) -> None:
        norms = centred.norm(dim=1, keepdim=True)
        self._rows = torch.cat([centred, norms * _SLACK, torch.ones_like(norms)], dim=1).bfloat16()
        self._weights = weights
        self._bias = (weights.b_enc - floors).detach()
        # Both factors are rounded once, and sums are made in float32.
        self._error = 2 * _UNIT + _UNIT**2 + centred.shape[1] * 2.0**-23
        longest, largest_bias = float(weights.W_enc_T.detach().norm(dim=1).max()), float(self._bias.abs().max())
        # Rounding and the column that makes up for it; the bias and its; the rounding of the sum.
        of_product, of_bias = 2 * self._error * _SLACK**3 * norms * longest, 8 * _UNIT * largest_bias
        self.raised_by_at_most = of_product + of_bias + 2 * _UNIT * 1.1 * (norms * longest + largest_bias)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        W_enc_T = self._weights.W_enc_T.detach()
        n_rows, d_sae = len(self._rows), len(W_enc_T)
        width = min(d_sae, max(256, active._BLOCK_ENTRIES // max(1, n_rows)))
        for start in range(0, d_sae, width):
            columns, bias = W_enc_T[start : start + width], self._bias[start : start + width, None]
            bounds = columns.norm(dim=1, keepdim=True) * (self._error * _SLACK)
            raised = torch.cat([columns, bounds, bias + 2 * _UNIT * bias.abs()], dim=1).bfloat16()
            yield start, torch.mm(self._rows, raised.T)


def _candidates(centred: Tensor, weights: Weights, floors: Tensor, max_density: float) -> SparseLatents | None:
    """The places of all pre-activations above their floor and of some below; values are meaningless."""
    found = active._Found(len(centred))
    for start, block in _Product(centred, weights, floors.detach()).blocks():
        found.add_positions(_bits(block) > 0, start)
        if found.n > max_density * len(centred) * max(start + block.shape[1], len(weights.b_enc) // 4):
            return None
    return found.by_row()


def _refined(candidates: SparseLatents, centred: Tensor, weights: Weights) -> SparseLatents:
    """The candidates with the values of their pre-activations in float32."""
    place = torch.arange(len(candidates.values), dtype=torch.float64)
    pattern = _by_latent(SparseLatents(candidates.row_offsets, candidates.latents, place), len(weights.b_enc))
    order = pattern.values.long()
    pattern = pattern._replace(values=torch.zeros(len(order), dtype=centred.dtype))
    values = torch.empty_like(pattern.values)
    values[order] = _at_pattern(pattern, weights.W_enc_T.detach(), centred)
    values += weights.b_enc.detach()[candidates.latents.long()]
    return SparseLatents(candidates.row_offsets, candidates.latents, values)


def _bits(block: Tensor) -> np.ndarray:
    """bf16 as integers that have the same order where they are positive, for NumPy, which does not know bf16."""
    bits: np.ndarray = block.view(torch.int16).numpy()
    return bits


def _takes_bf16(centred: Tensor) -> bool:
    return _in_bf16.get() and centred.dtype == torch.float32
