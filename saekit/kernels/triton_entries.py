"""`Entries` on a GPU: found after one dense product, then summed by Triton kernels; the host waits for nothing.

As many entries as there are is known to the device alone. Vectors of entries have a fixed capacity, kernels loop as far
as offsets on the device say, and what is past them is padding: latent 0, value 0, no gradient.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saekit.kernels import reference, triton_ops
from saekit.kernels.entries import Decoded, Entries
from saekit.kernels.types import SparseLatents, Step, Weights

_GROUP = 16
"""Neighbouring columns whose maximum is looked at first: the k largest lie in the k groups of largest maxima."""


class Pattern(NamedTuple):
    """Where the entries are, by row and by latent; all int32 and on the device."""

    row_offsets: Tensor
    """`[batch + 1]`: row i has entries `row_offsets[i]` up to `row_offsets[i + 1]`, of latents in ascending order."""
    latents: Tensor
    """`[capacity]`: the latent of each entry by row."""
    place: Tensor
    """`[capacity]`: where each entry by row stands by latent."""
    latent_offsets: Tensor
    """`[d_sae + 1]`: the same as `row_offsets` by latent."""
    rows: Tensor
    """`[capacity]`: the row of each entry by latent."""
    columns: Tensor
    """`[capacity]`: the latent of each entry by latent."""
    n_found: Tensor
    """`[]`: how many there are, which may be more than the capacity."""

    @property
    def capacity(self) -> int:
        return len(self.rows)


class TritonEntries(Entries):
    """The entries of a pattern. `pre_acts` and everything else per entry is a vector by latent, `[capacity]`.

    `n_dead_at_most` bounds how many latents `auxk` may be told are dead.
    """

    def __init__(
        self,
        x: Float[Tensor, "batch d_in"],
        weights: Weights,
        pattern: Pattern,
        values: Float[Tensor, " capacity"],
        n_dead_at_most: int | None = None,
    ) -> None:
        self.n_rows = len(x)
        self._x, self._weights, self._pattern = x, weights, pattern
        self._n_dead_at_most = len(weights.b_enc) if n_dead_at_most is None else n_dead_at_most
        self._segments = triton_ops.Segments(pattern.latent_offsets, pattern.capacity)
        ids = torch.arange(pattern.capacity, device=x.device, dtype=torch.int32)
        self._is_real = ids < pattern.n_found
        encoder = weights.W_enc_T, weights.b_enc, weights.b_dec
        self.pre_acts: Tensor = _Encode.apply(x, *encoder, values, self)

    @classmethod
    def above(
        cls,
        x: Float[Tensor, "batch d_in"],
        weights: Weights,
        matrix: Float[Tensor, "batch d_sae"],
        floors: Float[Tensor, " d_sae"],
        capacity: int,
        n_dead_at_most: int | None = None,
    ) -> "TritonEntries":
        """The entries of the pre-activations `matrix` above their latent's floor; see `overflow` for too many."""
        found = triton_ops.find(matrix, floors, capacity, x.dtype)
        row_offsets, latents, place, latent_offsets, rows, columns, values, n_found = found
        pattern = Pattern(row_offsets, latents, place, latent_offsets, rows, columns, n_found)
        return cls(x, weights, pattern, values, n_dead_at_most)

    @classmethod
    def largest_of_rows(
        cls,
        x: Float[Tensor, "batch d_in"],
        weights: Weights,
        matrix: Float[Tensor, "batch d_sae"],
        k: int,
        n_dead_at_most: int | None = None,
    ) -> "TritonEntries":
        """The k largest pre-activations of each row of `matrix`."""
        columns = largest_places(matrix, k).sort(dim=1).values
        values = matrix.gather(1, columns).flatten()
        ends = torch.arange(0, columns.numel() + 1, k, device=x.device, dtype=torch.int32)
        return cls._from_rows(x, weights, columns.flatten().int(), ends, values, n_dead_at_most)

    @classmethod
    def largest_of_batch(
        cls,
        x: Float[Tensor, "batch d_in"],
        weights: Weights,
        matrix: Float[Tensor, "batch d_sae"],
        n: int,
        n_dead_at_most: int | None = None,
    ) -> "TritonEntries":
        """The n largest pre-activations of `matrix`."""
        flat = largest_places(matrix.reshape(1, -1), n)[0].sort().values
        d_sae = matrix.shape[1]
        rows = torch.arange(len(matrix) + 1, device=x.device)
        ends = torch.searchsorted(flat, rows * d_sae, out_int32=True)
        values = matrix.reshape(-1)[flat]
        return cls._from_rows(x, weights, (flat % d_sae).int(), ends, values, n_dead_at_most)

    @classmethod
    def _from_rows(
        cls,
        x: Tensor,
        weights: Weights,
        latents: Tensor,
        row_offsets: Tensor,
        values: Tensor,
        n_dead_at_most: int | None,
    ) -> "TritonEntries":
        n, device = len(latents), latents.device
        columns, order = latents.sort(stable=True)
        ids = torch.arange(n, device=device, dtype=torch.int32)
        place = torch.empty_like(ids).scatter_(0, order, ids)
        rows = (torch.searchsorted(row_offsets, order.int(), right=True, out_int32=True) - 1).int()
        all_latents = torch.arange(len(weights.b_enc) + 1, device=device, dtype=torch.int32)
        latent_offsets = torch.searchsorted(columns, all_latents, out_int32=True)
        n_found = torch.full((), n, device=device, dtype=torch.int32)
        pattern = Pattern(row_offsets, latents, place, latent_offsets, rows, columns, n_found)
        return cls(x, weights, pattern, values[order].to(x.dtype), n_dead_at_most)

    @property
    def overflow(self) -> Bool[Tensor, ""]:
        """Whether there are more entries than there is room for, on the device; all results are then wrong."""
        return self._pattern.n_found > self._pattern.capacity

    @property
    def n_found(self) -> Tensor:
        """`[]`: how many entries there are, on the device."""
        return self._pattern.n_found

    @property
    def _dtype(self) -> torch.dtype:
        return self._x.dtype

    def per_entry(self, of_latents: Float[Tensor, " d_sae"]) -> Tensor:
        per_entry: Tensor = _PerEntry.apply(of_latents, self)
        return per_entry

    def per_row(self, of_entries: Tensor) -> Float[Tensor, " batch"]:
        per_row: Tensor = _PerRow.apply(of_entries, self)
        return per_row

    def mean_sum(self, of_entries: Tensor) -> Float[Tensor, ""]:
        return torch.where(self._is_real, of_entries, 0).sum(dtype=self._dtype) / self.n_rows

    def largest(self, n: int) -> Tensor:
        if self._pattern.capacity != n:
            raise ValueError(f"{self._pattern.capacity} entries were found where the {n} largest were to be.")
        return self.pre_acts.relu()

    def decode(
        self, latents: Tensor, prefixes: Sequence[int] = (), with_norms: bool = False, frozen: bool = False
    ) -> Decoded:
        W_dec, b_dec = self._weights.W_dec, self._weights.b_dec
        if frozen:
            W_dec, b_dec = W_dec.detach(), b_dec.detach()
        bounds = (0, *prefixes, len(W_dec))
        error, prefix_error, norms, x_hat = _Decode.apply(latents, W_dec, b_dec, self, bounds, with_norms)
        # Nothing may be learnt from a code of which a part had no room.
        error = torch.where(self.overflow, torch.nan, error)
        return Decoded(error, prefix_error, x_hat, norms)

    def auxk(
        self, x_hat: Float[Tensor, "batch d_in"], k_aux: int, is_dead: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, ""]:
        n_slots = min(len(is_dead), self._n_dead_at_most)
        if k_aux == 0 or n_slots == 0:
            return x_hat.new_zeros(())
        # The dead ones come first, then as many of the living as fill a size that the host knows.
        order = (~is_dead).to(torch.uint8).sort(stable=True).indices[:n_slots]
        W_enc_T, b_enc, W_dec, b_dec = self._weights
        pre_acts = torch.addmm(b_enc[order], self._x - b_dec, W_enc_T[order].T)
        pre_acts = pre_acts.masked_fill(~is_dead[order], -torch.inf)
        latents = reference.topk_latents(pre_acts, min(k_aux, n_slots))
        penalty = reference.auxk_of(latents, W_dec[order], self._x - x_hat)
        return torch.where(is_dead.any(), penalty, 0.0)

    def dead_pre_acts(self, is_dead: Bool[Tensor, " d_sae"]) -> Float[Tensor, "batch n_dead"]:
        W_enc_T, b_enc, _, b_dec = self._weights
        return torch.addmm(b_enc[is_dead], self._x - b_dec, W_enc_T[is_dead].T)

    def step(self, decoded: Decoded, penalty: Float[Tensor, ""], latents: Tensor) -> Step:
        pattern = self._pattern
        is_active = (latents.detach() > 0) & self._is_real
        n_fired = triton_ops.sum_ranges(is_active.int(), pattern.latent_offsets).long()
        values = torch.where(is_active, latents.detach(), 0)[pattern.place.long()]
        values = torch.where(self._is_real, values, 0)
        active = SparseLatents(pattern.row_offsets.long(), pattern.latents, values)
        return Step(decoded.error, penalty, decoded.x_hat, active, n_fired)


def largest_places(matrix: Float[Tensor, "rows columns"], n: int) -> Tensor:
    """The columns of the n largest entries of each row, in any order: `[rows n]` int64.

    Exact: an entry whose group is not among the n groups of largest maxima is exceeded by n others.
    """
    n_rows, n_columns = matrix.shape
    n_groups = n_columns // _GROUP
    if n_columns % _GROUP or n * 2 > n_groups:
        return matrix.topk(n, dim=1, sorted=False).indices
    groups = matrix.view(n_rows, n_groups, _GROUP)
    best = groups.amax(2).topk(n, dim=1, sorted=False).indices
    candidates = groups.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    among = candidates.topk(n, dim=1, sorted=False).indices
    return best.gather(1, among // _GROUP) * _GROUP + among % _GROUP


class _Encode(torch.autograd.Function):
    """The pre-activations of the entries; their values are known from finding them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc_T: Tensor, b_enc: Tensor, b_dec: Tensor, values: Tensor, entries: TritonEntries
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc_T, b_dec)
        ctx.rest = entries._pattern, entries._segments
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        _refuse_second_derivatives()
        x, W_enc_T, b_dec = ctx.saved_tensors
        pattern, segments = ctx.rest
        of_W_enc_T = torch.empty_like(W_enc_T)
        of_b_enc = segments.sum(gradients[0].contiguous(), pattern.rows, x - b_dec, None, of_W_enc_T, None)
        return None, of_W_enc_T, of_b_enc, -(of_b_enc @ W_enc_T), None, None


class _Decode(torch.autograd.Function):
    """Squared errors of the prefixes of the code that end at `bounds[1:]`, and the norms of the decoder's rows."""

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        entries: TritonEntries,
        bounds: tuple[int, ...],
        with_norms: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, pattern = entries._x, entries._pattern
        latents = latents.to(W_dec.dtype).contiguous()
        x_hat, errors = b_dec, []
        for some in pairwise(bounds):
            by_row = pattern.place, pattern.latents, pattern.row_offsets
            x_hat = triton_ops.sum_by_row(x_hat, latents, *by_row, W_dec, some)
            errors.append(x_hat - x)
        squared = torch.stack([error.square().sum() for error in errors]) / len(x)
        norms = W_dec.norm(dim=1) if with_norms else torch.ones_like(W_dec[:, 0])
        ctx.save_for_backward(latents, W_dec)
        ctx.rest = pattern, entries._segments, bounds, errors, norms if with_norms else None
        ctx.mark_non_differentiable(x_hat)
        return squared[-1], squared[:-1].sum(), norms, x_hat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        _refuse_second_derivatives()
        of_error, of_prefix_error, of_norms, _ = gradients
        latents, W_dec = ctx.saved_tensors
        pattern, segments, bounds, errors, norms = ctx.rest
        # A frozen decoder's gradient is made for nothing: rare, and not worth a kernel without it.
        of_W_dec, of_latents = torch.empty_like(W_dec), torch.zeros_like(latents)
        of_x_hat = errors[-1] * (2 / len(errors[-1]) * of_error)
        for i in reversed(range(len(errors))):
            if i < len(errors) - 1:
                of_x_hat = of_x_hat + errors[i] * (2 / len(errors[i]) * of_prefix_error)
            segments.sum(latents, pattern.rows, of_x_hat, W_dec, of_W_dec, of_latents, (bounds[i], bounds[i + 1]))
        if norms is not None:
            of_W_dec.addcmul_(W_dec, (of_norms / norms.clamp_min(torch.finfo(norms.dtype).tiny))[:, None])
        return of_latents, of_W_dec if ctx.needs_input_grad[1] else None, of_x_hat.sum(0), None, None, None


class _PerEntry(torch.autograd.Function):
    """Values of latents at the entries. Autograd would add gradients up in an order that changes from run to run."""

    @staticmethod
    def forward(ctx: Any, of_latents: Tensor, entries: TritonEntries) -> Tensor:
        ctx.pattern, ctx.is_real = entries._pattern, entries._is_real
        return of_latents[entries._pattern.columns.long()]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivatives()
        return triton_ops.sum_ranges(gradients[0].contiguous(), ctx.pattern.latent_offsets), None


class _PerRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, of_entries: Tensor, entries: TritonEntries) -> Tensor:
        pattern = entries._pattern
        ctx.rest = pattern.rows, entries._is_real
        return triton_ops.sum_ranges(of_entries.contiguous(), pattern.row_offsets, pattern.place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivatives()
        rows, is_real = ctx.rest
        return torch.where(is_real, gradients[0][rows.long()], 0), None


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError("The sparse step has no second derivatives. Type: kernel='dense'")
