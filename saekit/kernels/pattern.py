"""Active entries by latent, and a sparse product at them, on the CPU."""

import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.kernels.active import sort_stably
from saekit.kernels.types import SparseLatents


class _ByLatent(NamedTuple):
    """The active entries sorted by latent, then by row (CSC)."""

    offsets: Int[Tensor, " d_sae_plus_1"]
    rows: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    n_rows: int

    def columns(self) -> Int[Tensor, " nnz"]:
        """The latent of every entry."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.rows))

    def matrix(self, values: Float[Tensor, " nnz"]) -> Tensor:
        """The sparse matrix `[d_sae batch]` with `values` at these entries."""
        size = (len(self.offsets) - 1, self.n_rows)
        _take_the_notice_that_csr_is_in_beta()
        return torch.sparse_csr_tensor(self.offsets, self.rows, values, size, check_invariants=False)


@cache
def _take_the_notice_that_csr_is_in_beta() -> None:
    """Torch says it once per process, to every user of this step, who can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0))


def _by_latent(active: SparseLatents, d_sae: int) -> _ByLatent:
    latents = active.latents.numpy()
    order = sort_stably(latents, d_sae)
    offsets = np.zeros(d_sae + 1, np.int32)
    np.cumsum(np.bincount(latents, minlength=d_sae), out=offsets[1:])
    row_offsets = active.row_offsets.numpy()
    rows = np.repeat(np.arange(len(row_offsets) - 1, dtype=np.int32), np.diff(row_offsets))[order]
    values = active.values[torch.from_numpy(order)]
    return _ByLatent(torch.from_numpy(offsets), torch.from_numpy(rows), values, len(row_offsets) - 1)


def _at_pattern(pattern: _ByLatent, W_dec: Tensor, of_x_hat: Tensor) -> Float[Tensor, " nnz"]:
    """(W_dec of_x_hat^T) at the active entries. By latent, so that each row of W_dec is read once."""
    matrix = pattern.matrix(pattern.values)
    return torch.sparse.sampled_addmm(matrix, W_dec, of_x_hat.T, beta=0.0).values()
