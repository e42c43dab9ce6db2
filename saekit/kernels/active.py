"""Which latents are active, found on the CPU without storing the `[batch d_sae]` matrix or sorting a row.

The encoder's product is made a block of latents at a time, so that its entries are read back from the cache.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saekit.kernels.types import SparseLatents, Weights

_BLOCK_ENTRIES = 1 << 22
"""Entries of the product held at a time: 16 MB in float32, which fits a last-level cache."""
_CLASSES_PER_K = 8
"""Classes whose maxima bound the k-th largest entry of a row; with 8 k of them about 7 % too many entries pass."""


def active_relu(
    centred: Float[Tensor, "batch d_in"], weights: Weights, max_density: float = 1.0
) -> SparseLatents | None:
    """The positive pre-activations of centred inputs; None as soon as more than `max_density` of them seem to be."""
    b_enc = weights.b_enc.detach().numpy()
    found = _Found(len(centred))
    for start, block in _blocks(centred, weights):
        # Comparing with -b_enc instead of adding b_enc saves a pass over the product.
        entries, bias = block.numpy(), b_enc[start : start + block.shape[1]]
        found.add(entries, entries > -bias, start, bias)
        n_seen = len(centred) * max(start + len(bias), len(b_enc) // 4)
        if found.n > max_density * n_seen:
            return None
    return found.by_row()


def active_above(
    centred: Float[Tensor, "batch d_in"],
    weights: Weights,
    floors: Float[Tensor, " d_sae"],
    max_density: float = 1.0,
) -> SparseLatents | None:
    """Pre-activations above their latent's floor; None as soon as more than `max_density` of them seem to be."""
    b_enc = weights.b_enc.detach().numpy()
    limits = floors.detach().numpy().astype(b_enc.dtype) - b_enc
    found = _Found(len(centred))
    for start, block in _blocks(centred, weights):
        entries, at = block.numpy(), slice(start, start + block.shape[1])
        found.add(entries, entries > limits[at], start, b_enc[at])
        if found.n > max_density * len(centred) * max(start + block.shape[1], len(b_enc) // 4):
            return None
    return found.by_row()


def active_batch_topk(
    centred: Float[Tensor, "batch d_in"], weights: Weights, n: int, guess: float = 0.0
) -> SparseLatents:
    """The n largest pre-activations of the whole batch, where positive; ties at the n-th are cut anyhow.

    Exact whatever `guess` is. One a little below the n-th largest saves time: if n entries reach it, the n largest are
    among them; if fewer do, all is done again from zero, with a bound that rises to the n-th largest seen.
    """
    least = float(np.finfo(weights.b_enc.detach().numpy().dtype).smallest_subnormal)
    for start_bound in (guess, least) if guess > least else (least,):
        found, bound = _Found(len(centred)), start_bound
        n_at_update = 0
        for start, block in _blocks(centred, weights):
            block.add_(weights.b_enc.detach()[start : start + block.shape[1]])
            entries = block.numpy()
            found.add(entries, entries >= bound, start)
            if found.n > 2 * n + n_at_update:
                bound = max(bound, found.nth_largest(n))
                n_at_update = found.n
        if found.n >= n:
            break
    candidates = found.by_row()
    if len(candidates.values) <= n:
        return candidates
    keep = np.zeros(len(candidates.values), bool)
    keep[np.argpartition(candidates.values.numpy(), -n)[-n:]] = True
    return _keep(candidates, candidates.rows(), torch.from_numpy(keep))


def active_topk(centred: Float[Tensor, "batch d_in"], weights: Weights, k: int) -> SparseLatents:
    """The k largest pre-activations of each row of centred inputs, where positive; ties at the k-th are cut anyhow.

    Exact: columns are dealt into classes, and the k-th largest class maximum is no larger than the row's k-th largest
    entry. The few entries that reach that bound, which rises from block to block, are then cut to k.
    """
    b_enc = weights.b_enc.detach()
    found = _Found(len(centred))
    maxima = np.empty((len(centred), 0), b_enc.numpy().dtype)
    least = np.finfo(maxima.dtype).smallest_subnormal
    bound = np.full((len(centred), 1), least)
    next_update = 0
    for i, (start, block) in enumerate(_blocks(centred, weights), start=1):
        block.add_(b_enc[start : start + block.shape[1]])
        if i > next_update:
            # Blocks 1, 2, 4, 8 ...: by then a new bound is worth its cost.
            next_update = 2 * i - 1
            maxima = np.concatenate([maxima, _class_maxima(block, _CLASSES_PER_K * k)], axis=1)
            if maxima.shape[1] >= k:
                maxima = np.partition(maxima, -k, axis=1)[:, -k:]
                bound = np.maximum(maxima[:, :1], least)
        entries = block.numpy()
        found.add(entries, entries >= bound, start)
    return _largest(found.by_row(), torch.from_numpy(bound), k)


def sort_stably(keys: np.ndarray, n_keys: int) -> np.ndarray:
    """The order that sorts small non-negative integers; equal ones keep theirs. NumPy sorts 16-bit keys by radix."""
    return np.argsort(keys.astype(np.uint16) if n_keys <= 1 << 16 else keys, kind="stable")


def _blocks(centred: Tensor, weights: Weights) -> Iterator[tuple[int, Tensor]]:
    """The product of centred inputs with W_enc, without bias, by blocks of columns; each overwrites the last."""
    W_enc_T = weights.W_enc_T.detach()
    n_rows, d_sae = len(centred), len(W_enc_T)
    width = min(d_sae, max(256, _BLOCK_ENTRIES // max(1, n_rows)))
    memory = centred.new_empty(n_rows * width)
    for start in range(0, d_sae, width):
        columns = W_enc_T[start : start + width]
        block = memory[: n_rows * len(columns)].view(n_rows, len(columns))
        torch.mm(centred, columns.T, out=block)
        yield start, block


def _class_maxima(block: Tensor, n_classes: int, dtype: torch.dtype | None = None) -> np.ndarray:
    """Maxima of the columns that leave the same remainder by `n_classes`; a ragged end belongs to no class."""
    n_classes = min(n_classes, block.shape[1])
    n_whole = block.shape[1] // n_classes
    maxima: np.ndarray = (
        block[:, : n_whole * n_classes].unflatten(1, (n_whole, n_classes)).amax(1).to(dtype or block.dtype).numpy()
    )
    return maxima


class _Found:
    """Entries collected block by block."""

    def __init__(self, n_rows: int) -> None:
        self.n = 0
        self._n_rows = n_rows
        self._rows: list[np.ndarray] = []
        self._columns: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def add(self, block: np.ndarray, is_active: np.ndarray, start: int, bias: np.ndarray | None = None) -> None:
        flat = np.flatnonzero(is_active)
        rows = flat // block.shape[1]
        columns = flat - rows * block.shape[1]
        values = block.reshape(-1)[flat]
        self._rows.append(rows)
        self._columns.append((columns + start).astype(np.int32))
        self._values.append(values if bias is None else values + bias[columns])
        self.n += len(flat)

    def nth_largest(self, n: int) -> float:
        return float(np.partition(np.concatenate(self._values), -n)[-n])

    def add_positions(self, is_active: np.ndarray, start: int) -> None:
        """Entries whose values are not known yet."""
        flat = np.flatnonzero(is_active)
        rows = flat // is_active.shape[1]
        self._rows.append(rows)
        self._columns.append((flat - rows * is_active.shape[1] + start).astype(np.int32))
        self._values.append(np.empty(len(flat), np.float32))
        self.n += len(flat)

    def by_row(self) -> SparseLatents:
        rows = np.concatenate(self._rows)
        order = sort_stably(rows, self._n_rows)
        row_offsets = np.zeros(self._n_rows + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=self._n_rows), out=row_offsets[1:])
        return SparseLatents(
            torch.from_numpy(row_offsets),
            torch.from_numpy(np.concatenate(self._columns)[order]),
            torch.from_numpy(np.concatenate(self._values)[order]),
        )


def _largest(candidates: SparseLatents, bound: Tensor, k: int) -> SparseLatents:
    """The k largest candidates of each row, which must include all that reach `bound`."""
    rows = candidates.rows()
    keep = candidates.values >= bound[rows, 0]
    row_offsets, latents, values = _keep(candidates, rows, keep)
    rows = rows[keep]
    counts = row_offsets.diff()
    most = int(counts.max()) if len(counts) else 0
    if most <= k:
        return SparseLatents(row_offsets, latents, values)
    place = torch.arange(len(values)) - row_offsets[rows]
    padded = values.new_full((len(counts), most), -torch.inf)
    padded[rows, place] = values
    is_kept = torch.zeros_like(padded, dtype=torch.bool)
    is_kept.scatter_(1, padded.topk(k, dim=1, sorted=False).indices, True)
    return _keep(SparseLatents(row_offsets, latents, values), rows, is_kept[rows, place])


def _keep(entries: SparseLatents, rows: Tensor, keep: Tensor) -> SparseLatents:
    n_rows = len(entries.row_offsets) - 1
    row_offsets = torch.zeros_like(entries.row_offsets)
    row_offsets[1:] = torch.bincount(rows[keep], minlength=n_rows).cumsum(0)
    return SparseLatents(row_offsets, entries.latents[keep], entries.values[keep])
