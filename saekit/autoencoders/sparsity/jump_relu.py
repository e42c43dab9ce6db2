"""JumpReLU latents: zero below a trained threshold of their own, with straight-through gradients for the thresholds."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saekit.autoencoders.sparsity.base import WEIGHT, Sparsifier, StepState, active_above, is_weight, refuse
from saekit.kernels import Decoded, Entries, SparseLatents, Step, Weights

LOSSES = ("step", "tanh", "quadratic")


@dataclass(frozen=True, kw_only=True)
class JumpRelu:
    """Latents keep their pre-activation above a threshold of their own, and are zero below it.

    Rajamanoharan et al. 2024 (arXiv:2407.14435): L0 itself is the penalty, and thresholds get the gradient that a
    rectangle of width `bandwidth` around them stands for. `tanh` is the penalty of Anthropic's January 2025 update.
    Thresholds are trained as they are, held at 0 or above: their logarithm under Adam moves in steps that are huge for
    a large threshold and nothing for a small one.
    """

    weight: float = 1.0
    """Weight of the penalty against a row's squared error summed over features, at E||x||^2 = d_in."""
    loss: Literal["step", "tanh", "quadratic"] = "step"
    """The penalty of a row: `step` its number L0 of active latents, `tanh` the sum of tanh(tanh_scale * latent *
    decoder norm), `quadratic` 2 / target * (L0 - target)^2."""
    threshold: float = 0.1
    """Where every threshold starts."""
    bandwidth: float = 0.1
    """Width of the rectangle around a threshold within which pre-activations give it a gradient."""
    threshold_lr: float = 10.0
    """Learning rate of the thresholds over that of the weights. They are activations, of size sqrt(d_in / L0), and Adam
    moves every parameter by the same amount: at 1 they need tens of thousands of steps to get there."""
    target: float | None = None
    """L0 that the quadratic penalty aims at."""
    tanh_scale: float = 4.0
    """Steepness of tanh."""
    pre_act: float = 0.0
    """Weight of what dead latents' pre-activations lack to their thresholds; the January 2025 update has 3e-6."""
    ste_to_input: bool = False
    """Give pre-activations the opposite of their threshold's straight-through gradient, as that update does."""

    decoder_norm: ClassVar[str] = "unit"
    has_sparse_step: ClassVar[bool] = True
    has_penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        is_quadratic = self.loss == "quadratic"
        refuse(
            self,
            [
                ("weight", is_weight(self.weight), WEIGHT),
                ("loss", self.loss in LOSSES, "one of " + ", ".join(LOSSES)),
                ("threshold", is_weight(self.threshold), WEIGHT),
                ("bandwidth", math.isfinite(self.bandwidth) and self.bandwidth > 0, "above 0"),
                ("threshold_lr", math.isfinite(self.threshold_lr) and self.threshold_lr > 0, "above 0"),
                ("target", (self.target is not None) == is_quadratic, "there for the quadratic loss, and for no other"),
                ("target", self.target is None or self.target > 0, "above 0"),
                ("tanh_scale", self.tanh_scale > 0, "above 0"),
                ("pre_act", is_weight(self.pre_act), WEIGHT),
            ],
        )

    def build(self, d_sae: int) -> Sparsifier:
        return JumpReluSparsifier(self, d_sae)


class JumpReluSparsifier(Sparsifier):
    def __init__(self, spec: JumpRelu, d_sae: int) -> None:
        super().__init__()
        self.spec = spec
        self.threshold = nn.Parameter(torch.full((d_sae,), spec.threshold))

    def forward(
        self, pre_acts: Float[Tensor, "batch d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        return torch.where(pre_acts > self.threshold, pre_acts, 0)

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        spec = self.spec
        # Below its threshold, but within the rectangle, an entry has no value and yet a gradient for the threshold.
        entries = state.chooser.entries_above(x, weights, self.threshold.detach() - spec.bandwidth / 2)
        threshold = entries.per_entry(self.threshold)
        latents, is_on = jump(entries.pre_acts, threshold, spec.bandwidth, spec.ste_to_input)
        decoded = entries.decode(latents, with_norms=state.decoder_is_free)
        penalty = self._penalty(entries, latents, is_on, decoded)
        step = state.chooser.took(entries.step(decoded, penalty, latents))
        penalties = {"tanh" if spec.loss == "tanh" else "l0_loss": spec.weight * state.sparsity_scale * penalty}
        if spec.pre_act > 0:
            lack = (self.threshold[state.is_dead] - entries.dead_pre_acts(state.is_dead)).relu()
            penalties["pre_act"] = spec.pre_act * (lack * decoded.norms[state.is_dead]).sum() / len(x)
        return step, penalties

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        return active_above(centred, weights, self.threshold)

    def lr_scales(self) -> dict[str, float]:
        return {"threshold": self.spec.threshold_lr}

    @torch.no_grad()
    def project_(self) -> None:
        self.threshold.clamp_min_(0)

    @torch.no_grad()
    def reset_latents_(self, which: Bool[Tensor, " d_sae"]) -> None:
        self.threshold.masked_fill_(which, self.spec.threshold)

    def _penalty(self, entries: Entries, latents: Tensor, is_on: Tensor, decoded: Decoded) -> Float[Tensor, ""]:
        spec = self.spec
        if spec.loss == "step":
            return entries.mean_sum(is_on)
        if spec.loss == "tanh":
            return entries.mean_sum((spec.tanh_scale * latents * entries.per_entry(decoded.norms)).tanh())
        assert spec.target is not None
        return (entries.per_row(is_on) - spec.target).square().mean() * (2 / spec.target)


def jump(pre_acts: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> tuple[Tensor, Tensor]:
    """(pre_acts above their threshold, 1 above it), zero elsewhere, with straight-through gradients at the threshold.

    Each has the gradient of its smooth part and, within half a bandwidth of the threshold, that of its jump spread over
    the bandwidth: minus its height by the bandwidth for the threshold, and plus that for the input if asked for.
    """
    is_above = pre_acts > threshold
    spread = ((pre_acts - threshold).abs() < bandwidth / 2).to(pre_acts.dtype).detach() / bandwidth
    # Zero, with the gradient of the threshold (and of the input).
    shift = threshold - threshold.detach()
    if ste_to_input:
        shift = shift - (pre_acts - pre_acts.detach())
    latents = torch.where(is_above, pre_acts, 0) - threshold.detach() * spread * shift
    return latents, is_above.to(pre_acts.dtype) - spread * shift
