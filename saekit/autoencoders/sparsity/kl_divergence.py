"""Sigmoid latents pulled to a mean activation by a KL divergence."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from saekit import kernels
from saekit.autoencoders.sparsity.base import WEIGHT, Sparsifier, StepState, is_weight, refuse
from saekit.kernels import Step, Weights


@dataclass(frozen=True, kw_only=True)
class KLDivergence:
    """Sigmoid latents whose mean activations are pulled to `rho` by KL(Bernoulli(rho) || Bernoulli(rho_hat)).

    Ng 2011 (CS294A lecture notes, Sparse autoencoder), in a log-space form that stays finite and keeps its gradient
    when a latent is stuck at 0 or 1. Latents are dense: none is exactly zero, see `active_above`. They are bounded by
    1, so the decoder's rows carry the scale and are free unless asked otherwise.
    """

    rho: float = 0.05
    """Target mean activation of each latent, between 0 and 1. Keep batch size times rho at 5 or more."""
    weight: float = 1.0
    """Weight of the divergence summed over latents, against the squared error summed over features."""
    momentum: float = 0.9
    """Share of the old running mean rho_hat kept at each step; 0 uses the batch's mean alone."""
    active_above: float = 0.5
    """A latent counts as active (in l0, in dead counts, in the index) above this; 0.5 is a positive pre-activation."""

    decoder_norm: ClassVar[str] = "free"
    has_sparse_step: ClassVar[bool] = False
    has_penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse(
            self,
            [
                ("rho", 0 < self.rho < 1, "between 0 and 1"),
                ("weight", is_weight(self.weight), WEIGHT),
                ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
                ("active_above", 0 < self.active_above < 1, "between 0 and 1"),
            ],
        )

    def build(self, d_sae: int) -> Sparsifier:
        return KLDivergenceSparsifier(self, d_sae)


class KLDivergenceSparsifier(Sparsifier):
    log_rho_hat: Tensor
    """`[d_sae]`: log of the running mean activation."""
    log_one_minus_rho_hat: Tensor
    """`[d_sae]`: log of one minus it, kept apart because a float cannot tell 1 - 1e-80 from 1."""

    def __init__(self, spec: KLDivergence, d_sae: int) -> None:
        super().__init__()
        self.spec = spec
        self.active_above = spec.active_above
        self.initial_bias = math.log(spec.rho / (1 - spec.rho))
        self.register_buffer("log_rho_hat", torch.full((d_sae,), math.log(spec.rho)))
        self.register_buffer("log_one_minus_rho_hat", torch.full((d_sae,), math.log(1 - spec.rho)))

    def forward(
        self, pre_acts: Float[Tensor, "batch d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        return pre_acts.sigmoid()

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        pre_acts = kernels.pre_activations(x, weights)
        latents = pre_acts.sigmoid()
        x_hat = torch.addmm(weights.b_dec, latents, weights.W_dec)
        reconstruction = (x_hat - x).square().sum() / x.shape[0]
        divergence = self.divergence(pre_acts)
        n_fired = (latents.detach() > self.active_above).sum(0)
        step = Step(reconstruction, divergence, x_hat.detach(), latents.detach(), n_fired)
        return step, {"kl": self.spec.weight * state.sparsity_scale * divergence}

    @torch.no_grad()
    def reset_latents_(self, which: Bool[Tensor, " d_sae"]) -> None:
        self.log_rho_hat.masked_fill_(which, math.log(self.spec.rho))
        self.log_one_minus_rho_hat.masked_fill_(which, math.log(1 - self.spec.rho))

    def divergence(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """KL summed over latents, at the running rho_hat, which it updates.

        The gradient is the divergence's slope at the running mean times the batch mean's gradient (straight through).
        """
        pre_acts = pre_acts.to(self.log_rho_hat.dtype)
        log_n = math.log(pre_acts.shape[0])
        log_on = logsigmoid(pre_acts).logsumexp(0) - log_n
        log_off = logsigmoid(-pre_acts).logsumexp(0) - log_n
        running_on = self._update_(self.log_rho_hat, log_on.detach())
        running_off = self._update_(self.log_one_minus_rho_hat, log_off.detach())
        rho = self.spec.rho
        value = rho * (math.log(rho) - running_on) + (1 - rho) * (math.log(1 - rho) - running_off)
        slope_on = -rho * (log_on.detach() - running_on).exp()
        slope_off = -(1 - rho) * (log_off.detach() - running_off).exp()
        straight_through = slope_on * (log_on - log_on.detach()) + slope_off * (log_off - log_off.detach())
        return (value + straight_through).sum()

    def _update_(self, running: Tensor, batch: Tensor) -> Tensor:
        """Move a running log mean towards the batch's.

        It may not stay above ten times the batch's mean: the slope of a latent that has just collapsed would be
        divided by that ratio, which at a pre-activation of -200 is exp(197), and the latent would never come back.
        """
        momentum = self.spec.momentum
        mixed = batch
        if momentum > 0:
            mixed = torch.logaddexp(running + math.log(momentum), batch + math.log1p(-momentum))
        running.copy_(torch.minimum(mixed, batch + math.log(10)))
        return running.clone()
