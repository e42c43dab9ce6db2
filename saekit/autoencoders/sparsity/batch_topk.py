"""BatchTopK latents, and the Matryoshka form in which prefixes of the dictionary must reconstruct by themselves."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.autoencoders.sparsity import annealing
from saekit.autoencoders.sparsity.base import WEIGHT, Sparsifier, StepState, active_above, is_weight, refuse
from saekit.autoencoders.sparsity.topk import latents_of_auxk, refuse_large_k
from saekit.errors import ConfigError
from saekit.kernels import SparseLatents, Step, Weights

SLOWEST = 0.01
"""Least weight of a new batch in the running mean of the threshold."""


@dataclass(frozen=True, kw_only=True)
class BatchTopK:
    """Keep the k * batch largest pre-activations of a whole batch; AuxK trains dead latents.

    Bussmann et al. 2024 (arXiv:2412.06410). Outside training a latent is active above one threshold, the mean over
    batches of the smallest activation that was kept, so that rows do not depend on each other.
    """

    k: int = 32
    """Mean number of latents kept per row."""
    auxk: float = 1 / 32
    """Weight of AuxK, the share of the error that dead latents fail to explain times d_in; 0 turns it off."""
    k_aux: int | None = None
    """Dead latents per row that AuxK uses; None is half of d_in."""
    k_start: int | None = None
    """A larger k to begin with, which falls linearly to k; None is k from the beginning."""
    k_anneal_fraction: float = 0.1
    """Share of the run over which it falls."""

    decoder_norm: ClassVar[str] = "unit"
    has_sparse_step: ClassVar[bool] = True
    has_penalty: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _refuse(self)

    def build(self, d_sae: int) -> Sparsifier:
        refuse_large_k(self, d_sae)
        return BatchTopKSparsifier(self, ())


@dataclass(frozen=True, kw_only=True)
class MatryoshkaBatchTopK:
    """BatchTopK whose first latents must reconstruct without the others, at several lengths at once.

    Bussmann et al. 2025 (arXiv:2503.17547): the squared errors of all prefixes are added up, which keeps general
    features from being split among special ones.
    """

    k: int = 32
    """Mean number of latents kept per row, over the whole dictionary."""
    prefix_shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Lengths of the shorter prefixes, as rising shares of d_sae; the whole dictionary always comes on top."""
    auxk: float = 1 / 32
    """Weight of AuxK, the share of the error that dead latents fail to explain times d_in; 0 turns it off."""
    k_aux: int | None = None
    """Dead latents per row that AuxK uses; None is half of d_in."""
    k_start: int | None = None
    """A larger k to begin with, which falls linearly to k; None is k from the beginning."""
    k_anneal_fraction: float = 0.1
    """Share of the run over which it falls."""

    decoder_norm: ClassVar[str] = "unit"
    has_sparse_step: ClassVar[bool] = True
    has_penalty: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _refuse(self)
        rising = (0.0, *self.prefix_shares, 1.0)
        if not self.prefix_shares or any(a >= b for a, b in pairwise(rising)):
            raise ConfigError(
                f"MatryoshkaBatchTopK.prefix_shares={self.prefix_shares}; they rise and lie between 0 and 1."
            )

    def build(self, d_sae: int) -> Sparsifier:
        refuse_large_k(self, d_sae)
        prefixes = tuple(round(share * d_sae) for share in self.prefix_shares)
        rising = (0, *prefixes, d_sae)
        if any(a >= b for a, b in pairwise(rising)):
            raise ConfigError(
                f"MatryoshkaBatchTopK.prefix_shares={self.prefix_shares} are the prefixes {prefixes} of d_sae={d_sae}; "
                "no two may be equal. Give fewer, or raise d_sae."
            )
        return BatchTopKSparsifier(self, prefixes)


class BatchTopKSparsifier(Sparsifier):
    threshold: Tensor
    """`[]`: running mean of the smallest activation that a batch has kept; 0 before the first."""
    n_batches: Tensor
    """int64 `[]`: how many batches it has seen."""

    def __init__(self, spec: BatchTopK | MatryoshkaBatchTopK, prefixes: tuple[int, ...]) -> None:
        super().__init__()
        self.spec, self.prefixes = spec, prefixes
        self.k = annealing.AnnealedK(spec.k, spec.k_start, spec.k_anneal_fraction)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    def forward(
        self, pre_acts: Float[Tensor, "batch d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        return torch.where(pre_acts > self.threshold, pre_acts, 0)

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        n, k_aux = self.k.value * len(x), latents_of_auxk(self.spec, x.shape[1])
        # The threshold of the last batches, a little lowered, spares the search all but a few candidates.
        guess = 0.9 * self.threshold
        if self.prefixes:
            entries = state.chooser.largest_entries(x, weights, n, guess)
            latents = entries.largest(n)
            decoded = entries.decode(latents, self.prefixes)
            step = entries.step(decoded, entries.auxk(decoded.x_hat, k_aux, state.is_dead), latents)
            penalties = {"prefixes": decoded.prefix_error, "auxk": self.spec.auxk * step.penalty}
            state.chooser.took(step)
        else:
            step = state.chooser.batch_topk_step(x, weights, n, k_aux, state.is_dead, guess)
            penalties = {"auxk": self.spec.auxk * step.penalty}
        self._follow_(step)
        return step, penalties

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        return active_above(centred, weights, self.threshold.expand_as(weights.b_enc))

    def set_progress_(self, share: float) -> None:
        self.k.set_progress_(share)

    @torch.no_grad()
    def _follow_(self, step: Step) -> None:
        """Move the threshold towards the batch's smallest activation, by a mean over the last tenth of the batches.

        Activations drift while a run is young; from a thousand batches on it is an exponential mean of weight 0.01. A
        batch without any active latent leaves it as it is.
        """
        values = step.latents if isinstance(step.latents, Tensor) else step.latents.values
        positive = torch.where(values > 0, values, torch.inf)
        smallest = positive.amin() if positive.numel() else positive.new_tensor(torch.inf)
        is_there = smallest.isfinite()
        self.n_batches += is_there
        weight = (10 / (self.n_batches.clamp_min(1) + 9).to(self.threshold.dtype)).clamp_min(SLOWEST)
        moved = torch.lerp(self.threshold, smallest.to(self.threshold.dtype), weight)
        self.threshold.copy_(torch.where(is_there, moved, self.threshold))


def _refuse(spec: BatchTopK | MatryoshkaBatchTopK) -> None:
    refuse(
        spec,
        [
            *annealing.rules(spec.k, spec.k_start, spec.k_anneal_fraction),
            ("auxk", is_weight(spec.auxk), WEIGHT),
            ("k_aux", spec.k_aux is None or spec.k_aux >= 1, "1 or larger"),
        ],
    )
