"""ReLU latents whose penalty goes from the L1 norm towards counting them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saekit import kernels
from saekit.autoencoders.sparsity.base import WEIGHT, Sparsifier, StepState, is_weight, refuse
from saekit.kernels import SparseLatents, Step, Weights

N_RECENT = 10
"""Batches over which the penalty with the old p is compared with that with the new one."""


@dataclass(frozen=True, kw_only=True)
class PAnneal:
    """ReLU latents with a penalty sum_i f_i^p, whose p falls from 1 in steps while its value is held.

    Karvonen et al. 2024 (arXiv:2408.00113): at each step of p the weight is multiplied by the ratio of the penalty of
    the last 10 batches with the old p to that with the new one. Small latents are pushed to zero, large ones let be.
    """

    weight: float = 5.0
    """Weight at p = 1, that is of the L1 norm against a row's squared error summed over features, at E||x||^2 =
    d_in."""
    p_end: float = 0.2
    """The last p."""
    anneal_from: float = 0.1
    """Share of the run that is over when p first falls."""
    n_updates: int = 10
    """In how many equal steps p falls, evenly over the rest of the run."""

    decoder_norm: ClassVar[str] = "unit"
    has_sparse_step: ClassVar[bool] = True
    has_penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse(
            self,
            [
                ("weight", is_weight(self.weight), WEIGHT),
                ("p_end", 0 < self.p_end <= 1, "in (0, 1]"),
                ("anneal_from", 0 <= self.anneal_from < 1, "in [0, 1)"),
                ("n_updates", self.n_updates >= 1, "1 or larger"),
            ],
        )

    def build(self, d_sae: int) -> Sparsifier:
        return PAnnealSparsifier(self)


class PAnnealSparsifier(Sparsifier):
    n_updates_done: Tensor
    """int64 `[]`: how often p has fallen."""
    factor: Tensor
    """`[]`: what the weight has been multiplied by."""
    recent: Tensor
    """`[N_RECENT 2]`: the penalty of the last batches with the p of the moment and with the next one."""

    def __init__(self, spec: PAnneal) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("n_updates_done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("recent", torch.zeros(N_RECENT, 2))

    def p(self, n_updates: Tensor) -> Float[Tensor, ""]:
        """The exponent after so many steps."""
        share = n_updates.clamp_max(self.spec.n_updates).to(self.factor.dtype) / self.spec.n_updates
        return 1 + (self.spec.p_end - 1) * share

    def forward(
        self, pre_acts: Float[Tensor, "batch d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        return pre_acts.relu()

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        entries = state.chooser.entries_above(x, weights, torch.zeros_like(weights.b_enc))
        latents = entries.pre_acts.relu()
        decoded = entries.decode(latents, with_norms=state.decoder_is_free)
        weighted = latents * entries.per_entry(decoded.norms)
        penalty = entries.mean_sum(_power(weighted, self.p(self.n_updates_done)))
        with torch.no_grad():
            after = entries.mean_sum(_power(weighted, self.p(self.n_updates_done + 1)))
            self.recent.copy_(torch.cat([self.recent[1:], torch.stack([penalty.detach(), after])[None]]))
        step = state.chooser.took(entries.step(decoded, penalty, latents))
        return step, {"lp": self.spec.weight * self.factor * state.sparsity_scale * penalty}

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        return kernels.active_relu(centred, weights) or super().active(centred, weights)

    @torch.no_grad()
    def set_progress_(self, share: float) -> None:
        spec = self.spec
        over = (share - spec.anneal_from) / (1 - spec.anneal_from)
        due = 0 if over < 0 else min(spec.n_updates, 1 + int(over * spec.n_updates))
        # One at a time: only the next p has been compared with.
        is_due = self.n_updates_done < due
        now, after = self.recent.sum(0)
        ratio = torch.where(after > 0, now / after.clamp_min(torch.finfo(after.dtype).tiny), 1)
        self.factor.mul_(torch.where(is_due, ratio, 1))
        self.n_updates_done.add_(is_due)
        self.recent.mul_(~is_due)


def _power(values: Tensor, p: Float[Tensor, ""]) -> Tensor:
    """values^p where they are positive, zero and without gradient elsewhere."""
    is_positive = values > 0
    return torch.where(is_positive, torch.where(is_positive, values, 1).pow(p.to(values.dtype)), 0)
