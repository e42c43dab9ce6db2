"""The middle of a training step, written once for every sparsity: entries of the code and what they decode to.

A sparsity asks for the pre-activations that can carry a value or a gradient (`Entries`), computes latents and penalties
from them with plain torch operations, and decodes. `DenseEntries` holds all `[batch d_sae]` of them in plain autograd
and is the reference; a sparse implementation (`cpu_entries`) holds those that were asked for, in a vector. A device
that implements these methods serves all sparsities.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saekit.kernels import dense, reference
from saekit.kernels.types import Step, Weights


class Decoded(NamedTuple):
    """What latents decode to. `x_hat` is detached, the rest is differentiable."""

    error: Tensor
    """`[]`: squared error summed over features, mean over the batch."""
    prefix_error: Tensor
    """`[]`: the same summed over the shorter prefixes that were asked for; 0 if none were."""
    x_hat: Tensor
    """`[batch d_in]`."""
    norms: Tensor
    """`[d_sae]`: the norms of the decoder's rows, whose gradient reaches `W_dec`; ones unless asked for."""


class Entries(ABC):
    """Pre-activations of a batch: all of them, or those that can carry a value or a gradient."""

    pre_acts: Tensor
    """`[batch d_sae]` or `[nnz]`, differentiable in the encoder's weights and in b_dec."""
    n_rows: int

    @abstractmethod
    def per_entry(self, of_latents: Float[Tensor, " d_sae"]) -> Tensor:
        """For every entry the value of its latent, in a shape that computes with `pre_acts`."""

    @abstractmethod
    def per_row(self, of_entries: Tensor) -> Float[Tensor, " batch"]:
        """The sum of each row's entries."""

    @abstractmethod
    def largest(self, n: int) -> Tensor:
        """The n largest pre-activations of the batch, where positive, and zero at other entries."""

    @abstractmethod
    def decode(
        self, latents: Tensor, prefixes: Sequence[int] = (), with_norms: bool = False, frozen: bool = False
    ) -> Decoded:
        """Reconstruct x from `latents`, one per entry.

        Each of `prefixes`, ascending and below d_sae, decodes its first so many latents on their own as well. `frozen`
        stops gradients at the decoder's weights and b_dec.
        """

    @abstractmethod
    def auxk(
        self, x_hat: Float[Tensor, "batch d_in"], k_aux: int, is_dead: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, ""]:
        """`reference.auxk` for the error that `x_hat` leaves."""

    @abstractmethod
    def dead_pre_acts(self, is_dead: Bool[Tensor, " d_sae"]) -> Float[Tensor, "batch n_dead"]:
        """All pre-activations of the dead latents, whether they are among the entries or not; differentiable."""

    @abstractmethod
    def step(self, decoded: Decoded, penalty: Float[Tensor, ""], latents: Tensor) -> Step:
        """The step with these results; `latents` above 0 are the active ones."""

    def mean_sum(self, of_entries: Tensor) -> Float[Tensor, ""]:
        """The sum over all entries, divided by the number of rows."""
        return of_entries.sum(dtype=self._dtype) / self.n_rows

    @property
    @abstractmethod
    def _dtype(self) -> torch.dtype: ...


class DenseEntries(Entries):
    """All entries, in plain torch: what a sparse implementation must agree with, values and gradients."""

    def __init__(self, x: Float[Tensor, "batch d_in"], weights: Weights) -> None:
        self.n_rows = len(x)
        self._x, self._weights = x, weights
        self.pre_acts = dense.pre_activations(x, weights)

    @property
    def _dtype(self) -> torch.dtype:
        return self._x.dtype

    def per_entry(self, of_latents: Float[Tensor, " d_sae"]) -> Tensor:
        return of_latents

    def per_row(self, of_entries: Tensor) -> Float[Tensor, " batch"]:
        return of_entries.sum(1, dtype=self._dtype)

    def largest(self, n: int) -> Tensor:
        return reference.batch_topk_latents(self.pre_acts, n)

    def decode(
        self, latents: Tensor, prefixes: Sequence[int] = (), with_norms: bool = False, frozen: bool = False
    ) -> Decoded:
        W_dec, b_dec = self._weights.W_dec, self._weights.b_dec
        if frozen:
            W_dec, b_dec = W_dec.detach(), b_dec.detach()
        bounds = [0, *prefixes, len(W_dec)]
        x_hat: Tensor = b_dec
        errors = []
        for start, stop in pairwise(bounds):
            x_hat = x_hat + latents[:, start:stop] @ W_dec[start:stop]
            errors.append((x_hat - self._x).square().sum() / self.n_rows)
        norms = W_dec.norm(dim=1) if with_norms else torch.ones_like(W_dec[:, 0])
        prefix_error = torch.stack(errors[:-1]).sum() if prefixes else errors[0].new_zeros(())
        return Decoded(errors[-1], prefix_error, x_hat.detach(), norms)

    def auxk(
        self, x_hat: Float[Tensor, "batch d_in"], k_aux: int, is_dead: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, ""]:
        return reference.auxk(self._x - x_hat, self.pre_acts, self._weights, k_aux, is_dead)

    def dead_pre_acts(self, is_dead: Bool[Tensor, " d_sae"]) -> Float[Tensor, "batch n_dead"]:
        return self.pre_acts[:, is_dead]

    def step(self, decoded: Decoded, penalty: Float[Tensor, ""], latents: Tensor) -> Step:
        latents = latents.detach()
        return Step(decoded.error, penalty, decoded.x_hat, latents, (latents > 0).sum(0))
