"""Triton kernels over the active entries of a code: find them, sum them by row, sum them by latent.

Entries are held twice: by row, for decoding, and by latent, for gradients. Every sum runs over entries in a fixed
order and nothing is added atomically, so the same batch gives the same bits. Offsets live on the device: kernels loop
as far as they say, and the host never waits to learn how many entries there are. Without a GPU, the environment
variable TRITON_INTERPRET=1 runs them.
"""

# Kernels take pointers and numbers that only Triton has types for.
# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 32, 128
SEGMENT = 256
"""Entries of a latent that one program sums; a latent with more is summed by several, then their sums are."""


@triton.jit
def _count_tiles(
    matrix, floors, row_counts, column_counts, n_rows, n_columns, n_row_tiles, n_column_tiles, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    i, j = tl.program_id(0), tl.program_id(1)
    rows = i * ROWS + tl.arange(0, ROWS)
    columns = j * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    at = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
    values = tl.load(matrix + at, mask=inside, other=0.0)
    floor = tl.load(floors + columns, mask=columns < n_columns, other=0.0)
    is_in = (inside & (values > floor[None, :])).to(tl.int32)
    tl.store(row_counts + rows * n_column_tiles + j, tl.sum(is_in, axis=1), mask=rows < n_rows)
    tl.store(column_counts + columns * n_row_tiles + i, tl.sum(is_in, axis=0), mask=columns < n_columns)


@triton.jit
def _fill_tiles(
    matrix, floors, row_starts, column_starts, latents, place, rows_of, latents_of, values_of, n_rows, n_columns,
    n_row_tiles, n_column_tiles, capacity, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i, j = tl.program_id(0), tl.program_id(1)
    rows = i * ROWS + tl.arange(0, ROWS)
    columns = j * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    at = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
    values = tl.load(matrix + at, mask=inside, other=0.0)
    floor = tl.load(floors + columns, mask=columns < n_columns, other=0.0)
    is_in = inside & (values > floor[None, :])
    one = is_in.to(tl.int32)
    by_row = tl.load(row_starts + rows * n_column_tiles + j, mask=rows < n_rows, other=0)
    by_latent = tl.load(column_starts + columns * n_row_tiles + i, mask=columns < n_columns, other=0)
    p = by_row[:, None] + tl.cumsum(one, axis=1) - one
    q = by_latent[None, :] + tl.cumsum(one, axis=0) - one
    has_room = is_in & (p < capacity) & (q < capacity)
    which = tl.broadcast_to(columns[None, :], (ROWS, COLUMNS))
    tl.store(latents + p, which, mask=has_room)
    tl.store(place + p, q, mask=has_room)
    tl.store(rows_of + q, tl.broadcast_to(rows[:, None], (ROWS, COLUMNS)), mask=has_room)
    tl.store(latents_of + q, which, mask=has_room)
    tl.store(values_of + q, values.to(values_of.dtype.element_ty), mask=has_room)


@triton.jit
def _sum_by_row(
    start, start_stride, values_of, place, latents, row_offsets, matrix, out, lowest, highest, d, BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
):  # fmt: skip
    """out[row] = start[row] + the sum of value * matrix[latent] over the row's entries with latent in a range."""
    row = tl.program_id(0)
    features = tl.arange(0, BLOCK)
    inside = features < d
    total = tl.load(start + row * start_stride + features, mask=inside, other=0.0)
    first, last = tl.load(row_offsets + row), tl.load(row_offsets + row + 1)
    for begin in range(first, last, ENTRIES):
        p = begin + tl.arange(0, ENTRIES)
        latent = tl.load(latents + p, mask=p < last, other=-1)
        is_in = (latent >= lowest) & (latent < highest)
        q = tl.load(place + p, mask=is_in, other=0)
        value = tl.load(values_of + q, mask=is_in, other=0.0)
        at = tl.where(is_in, latent, 0).to(tl.int64)[:, None] * d + features[None, :]
        block = tl.load(matrix + at, mask=is_in[:, None] & inside[None, :], other=0.0)
        total += tl.sum(value[:, None] * block, axis=0)
    tl.store(out + row.to(tl.int64) * d + features, total, mask=inside)


@triton.jit
def _sum_by_latent(
    values_of, rows_of, offsets, of_segment, first_segments, partial_starts, dense, weights, out, partials, dots, sums,
    lowest, highest, d, n_latents, WITH_DOTS: tl.constexpr, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
):  # fmt: skip
    """out[latent] = sum of value * dense[row] over its entries; dots = dense[row] . weights[latent] at each of them."""
    segment = tl.program_id(0)
    latent = tl.load(of_segment + segment)
    if (latent >= lowest) & (latent < highest):
        features = tl.arange(0, BLOCK)
        inside = features < d
        part = segment - tl.load(first_segments + latent)
        n_parts = tl.load(first_segments + latent + 1) - tl.load(first_segments + latent)
        first = tl.load(offsets + latent) + part * LENGTH
        last = tl.minimum(first + LENGTH, tl.load(offsets + latent + 1))
        at_latent = latent.to(tl.int64) * d + features
        total = tl.zeros([BLOCK], dtype=out.dtype.element_ty)
        of_values = tl.zeros([ENTRIES], dtype=out.dtype.element_ty)
        if WITH_DOTS:
            weight = tl.load(weights + at_latent, mask=inside, other=0.0)
        for begin in range(first, last, ENTRIES):
            q = begin + tl.arange(0, ENTRIES)
            is_in = q < last
            value = tl.load(values_of + q, mask=is_in, other=0.0)
            row = tl.load(rows_of + q, mask=is_in, other=0).to(tl.int64)
            block = tl.load(
                dense + row[:, None] * d + features[None, :], mask=is_in[:, None] & inside[None, :], other=0.0
            )
            total += tl.sum(value[:, None] * block, axis=0)
            if WITH_DOTS:
                tl.store(dots + q, tl.sum(block * weight[None, :], axis=1), mask=is_in)
            else:
                of_values += value
        if n_parts == 1:
            tl.store(out + at_latent, total, mask=inside)
        else:
            at = (tl.load(partial_starts + latent) + part).to(tl.int64) * d + features
            tl.store(partials + at, total, mask=inside)
        if not WITH_DOTS:
            tl.store(sums + segment, tl.sum(of_values, axis=0))


@triton.jit
def _sum_partials(first_segments, partial_starts, partials, out, lowest, d, BLOCK: tl.constexpr):
    latent = lowest + tl.program_id(0)
    n_parts = tl.load(first_segments + latent + 1) - tl.load(first_segments + latent)
    if n_parts > 1:
        features = tl.arange(0, BLOCK)
        inside = features < d
        total = tl.zeros([BLOCK], dtype=out.dtype.element_ty)
        start = tl.load(partial_starts + latent).to(tl.int64)
        for part in range(n_parts):
            total += tl.load(partials + (start + part) * d + features, mask=inside, other=0.0)
        tl.store(out + latent.to(tl.int64) * d + features, total, mask=inside)


@triton.jit
def _sum_ranges(values, place, offsets, out, INDIRECT: tl.constexpr, ENTRIES: tl.constexpr):
    """out[i] = the sum of values[offsets[i] : offsets[i + 1]], looked up through `place` if `INDIRECT`."""
    i = tl.program_id(0)
    first, last = tl.load(offsets + i), tl.load(offsets + i + 1)
    total = tl.zeros([ENTRIES], dtype=out.dtype.element_ty)
    for begin in range(first, last, ENTRIES):
        p = begin + tl.arange(0, ENTRIES)
        at = tl.load(place + p, mask=p < last, other=0) if INDIRECT else p
        total += tl.load(values + at, mask=p < last, other=0.0)
    tl.store(out + i, tl.sum(total, axis=0))


def find(matrix: Tensor, floors: Tensor, capacity: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The entries of `matrix [batch d_sae]` above their column's floor, the first `capacity` of them.

    Returns, by row, `row_offsets [batch + 1]`, `latents [capacity]` and `place [capacity]` (where an entry stands by
    latent); by latent, `latent_offsets [d_sae + 1]`, `rows`, `latents` and `values [capacity]`; and `[]`, how many
    there are. All int32 but the values. Offsets end at the capacity when there are more.
    """
    n_rows, n_columns = matrix.shape
    tiles = triton.cdiv(n_rows, TILE_ROWS), triton.cdiv(n_columns, TILE_COLUMNS)
    row_counts = matrix.new_empty((n_rows, tiles[1]), dtype=torch.int32)
    column_counts = matrix.new_empty((n_columns, tiles[0]), dtype=torch.int32)
    sizes = n_rows, n_columns, *tiles
    _count_tiles[tiles](matrix, floors, row_counts, column_counts, *sizes, TILE_ROWS, TILE_COLUMNS)
    row_starts, row_offsets = _starts(row_counts)
    column_starts, latent_offsets = _starts(column_counts)
    latents, place, rows_of, latents_of = (row_counts.new_zeros(capacity) for _ in range(4))
    values_of = matrix.new_zeros(capacity, dtype=dtype)
    _fill_tiles[tiles](
        matrix, floors, row_starts, column_starts, latents, place, rows_of, latents_of, values_of, *sizes, capacity,
        TILE_ROWS, TILE_COLUMNS,
    )  # fmt: skip
    n_found = row_offsets[-1].clone()
    return (
        row_offsets.clamp_max(capacity),
        latents,
        place,
        latent_offsets.clamp_max(capacity),
        rows_of,
        latents_of,
        values_of,
        n_found,
    )


def sum_by_row(
    start: Tensor,
    values_of: Tensor,
    place: Tensor,
    latents: Tensor,
    row_offsets: Tensor,
    matrix: Tensor,
    bounds: tuple[int, int],
) -> Tensor:
    """`start` (`[d_in]` or `[batch d_in]`) plus code @ matrix, of the latents from `bounds[0]` up to `bounds[1]`."""
    n_rows, d = len(row_offsets) - 1, matrix.shape[1]
    out = matrix.new_empty((n_rows, d))
    stride = d if start.ndim == 2 else 0
    _sum_by_row[(n_rows,)](
        start, stride, values_of, place, latents, row_offsets, matrix, out, *bounds, d, **_blocks(d)
    )  # fmt: skip
    return out


class Segments:
    """How the entries of latents are shared out among programs; made from offsets that only the device knows."""

    def __init__(self, offsets: Tensor, capacity: int) -> None:
        self.offsets, self.n_latents = offsets, len(offsets) - 1
        counts = (offsets.diff() + (SEGMENT - 1)).div(SEGMENT, rounding_mode="floor").clamp_min(1)
        self.first = _exclusive(counts)
        # Only the latents with several segments need room for partial sums.
        several = torch.where(counts > 1, counts, 0)
        self.partial_starts = _exclusive(several)[:-1]
        self.n_partials = 2 * (capacity // SEGMENT) + 1
        self.n = self.n_latents + capacity // SEGMENT
        ids = torch.arange(self.n, device=offsets.device, dtype=torch.int32)
        self.latent = torch.searchsorted(self.first[1:], ids, right=True, out_int32=True)

    def sum(
        self,
        values_of: Tensor,
        rows_of: Tensor,
        dense: Tensor,
        weights: Tensor | None,
        out: Tensor,
        dots: Tensor | None,
        bounds: tuple[int, int] | None = None,
    ) -> Tensor | None:
        """out = code^T @ dense `[batch d_in]` for the latents in `bounds`, every row written.

        With `weights`, fills `dots` with (weights dense^T) at the entries; without, returns sums of values.
        """
        d = dense.shape[1]
        lowest, highest = bounds or (0, self.n_latents)
        partials = dense.new_empty((self.n_partials, d))
        sums = dense.new_zeros(self.n) if weights is None else dense
        _sum_by_latent[(self.n,)](
            values_of, rows_of, self.offsets, self.latent, self.first, self.partial_starts, dense,
            dense if weights is None else weights, out, partials, dense if dots is None else dots, sums, lowest,
            highest, d, self.n_latents, weights is not None, SEGMENT, **_blocks(d),
        )  # fmt: skip
        _sum_partials[(highest - lowest,)](
            self.first, self.partial_starts, partials, out, lowest, d, triton.next_power_of_2(d)
        )  # fmt: skip
        return None if weights is not None else sum_ranges(sums, self.first)


def sum_ranges(values: Tensor, offsets: Tensor, place: Tensor | None = None) -> Tensor:
    """The sums of `values[offsets[i] : offsets[i + 1]]`, of values at `place` if it is given."""
    out = values.new_empty(len(offsets) - 1)
    _sum_ranges[(len(out),)](values, values if place is None else place, offsets, out, place is not None, 128)
    return out


def _starts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where the entries of each cell begin when cells are gone through in order, and the offsets of whole lines."""
    ends = counts.flatten().cumsum(0, dtype=torch.int32)
    starts = ends - counts.flatten()
    return starts, torch.cat([starts[:: counts.shape[1]], ends[-1:]])


def _exclusive(counts: Tensor) -> Tensor:
    ends = counts.cumsum(0, dtype=torch.int32)
    return torch.cat([ends.new_zeros(1), ends])


def _blocks(d: int) -> dict[str, int]:
    block = triton.next_power_of_2(d)
    return {"BLOCK": block, "ENTRIES": max(1, min(8, 8192 // block)), "num_warps": 4 if block <= 2048 else 8}
