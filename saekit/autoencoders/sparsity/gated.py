"""Gated latents: one affine map decides which are active, a rescaled one how much."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saekit.autoencoders.sparsity.base import (
    WEIGHT,
    Sparsifier,
    StepState,
    active_above,
    is_weight,
    keep_entries,
    refuse,
)
from saekit.kernels import SparseLatents, Step, Weights


@dataclass(frozen=True, kw_only=True)
class Gated:
    """Latents that a gate switches on, whose L1 penalty falls on the gate alone and so does not shrink them.

    Rajamanoharan et al. 2024 (arXiv:2404.16014). Gate and magnitude share the encoder's weights; b_enc is the gate's
    bias. The gate learns from the L1 penalty and from having to reconstruct, through a frozen decoder, by itself.
    """

    l1: float = 5.0
    """Weight of the L1 norm of a row's positive gate pre-activations against its squared error summed over features, at
    E||x||^2 = d_in."""

    decoder_norm: ClassVar[str] = "unit"
    has_sparse_step: ClassVar[bool] = True
    has_penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse(self, [("l1", is_weight(self.l1), WEIGHT)])

    def build(self, d_sae: int) -> Sparsifier:
        return GatedSparsifier(self, d_sae)


class GatedSparsifier(Sparsifier):
    def __init__(self, spec: Gated, d_sae: int) -> None:
        super().__init__()
        self.spec = spec
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        """Log of what a magnitude's weights are multiplied by."""
        self.b_mag = nn.Parameter(torch.zeros(d_sae))
        """Bias of the magnitudes."""

    def forward(
        self, pre_acts: Float[Tensor, "batch d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        magnitudes = (self.r_mag.exp() * (pre_acts - b_enc) + self.b_mag).relu()
        return torch.where(pre_acts > 0, magnitudes, 0)

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        entries = state.chooser.entries_above(x, weights, torch.zeros_like(weights.b_enc))
        gate = entries.pre_acts.relu()
        products = entries.pre_acts - entries.per_entry(weights.b_enc)
        magnitudes = entries.per_entry(self.r_mag.exp()) * products + entries.per_entry(self.b_mag)
        latents = torch.where(gate > 0, magnitudes.relu(), 0)
        decoded = entries.decode(latents, with_norms=state.decoder_is_free)
        l1 = entries.mean_sum(gate * entries.per_entry(decoded.norms))
        by_gate = entries.decode(gate, frozen=True).error
        step = state.chooser.took(entries.step(decoded, l1, latents))
        return step, {"l1": self.spec.l1 * state.sparsity_scale * l1, "by_gate": by_gate}

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        gates = active_above(centred, weights, torch.zeros_like(weights.b_enc))
        of = gates.latents.long()
        values = (self.r_mag.exp()[of] * (gates.values - weights.b_enc[of]) + self.b_mag[of]).relu()
        return keep_entries(gates, values, values > 0)

    @torch.no_grad()
    def reset_latents_(self, which: Bool[Tensor, " d_sae"]) -> None:
        self.r_mag.masked_fill_(which, 0)
        self.b_mag.masked_fill_(which, 0)
