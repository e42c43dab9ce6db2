"""What goes into a training step of a sparse autoencoder and what comes out of it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Weights(NamedTuple):
    """The four parameters of an affine encoder and decoder."""

    W_enc_T: Tensor
    """`[d_sae d_in]`: W_enc transposed, because a sparse step reads and writes whole latents."""
    b_enc: Tensor
    """`[d_sae]`."""
    W_dec: Tensor
    """`[d_sae d_in]`."""
    b_dec: Tensor
    """`[d_in]`: added to the decoder's output and subtracted from the encoder's input."""


class SparseLatents(NamedTuple):
    """The active latents of a batch, by row and then by ascending latent (the CSR form of `[batch d_sae]`).

    Those of a training step on a GPU may have entries of value 0 and, past `row_offsets[-1]`, padding of value 0.
    """

    row_offsets: Tensor
    """int64 `[batch + 1]`: row i holds entries `row_offsets[i]` up to `row_offsets[i + 1]`."""
    latents: Tensor
    """int32 `[nnz]`: which latent."""
    values: Tensor
    """`[nnz]`: its activation."""

    def to_dense(self, d_sae: int) -> Float[Tensor, "batch d_sae"]:
        """The matrix with these entries and zeros elsewhere."""
        dense = self.values.new_zeros((self.row_offsets.numel() - 1, d_sae))
        dense[self.rows(), self.latents.long()] = self.values
        return dense

    def rows(self) -> Int[Tensor, " nnz"]:
        """The row of every entry, int64."""
        n_rows = self.row_offsets.numel() - 1
        rows = torch.arange(n_rows, device=self.row_offsets.device)
        return torch.repeat_interleave(rows, self.row_offsets.diff(), output_size=self.values.numel())


class Step(NamedTuple):
    """One training step's losses (differentiable) and what was computed on the way (detached)."""

    reconstruction: Tensor
    """`[]`: squared error summed over features, mean over the batch."""
    penalty: Tensor
    """`[]`: the kernel's second loss before its coefficient: the L1 norm of the latents, or AuxK."""
    x_hat: Tensor
    """`[batch d_in]`."""
    latents: Tensor | SparseLatents
    """`[batch d_sae]`: dense after the dense path, sparse after the sparse one."""
    n_fired: Tensor
    """int64 `[d_sae]`: in how many rows of the batch each latent was active."""
