"""What makes latents sparse. Each sparsity is a frozen spec, which people write, and the module it builds, below it.

A new one (BatchTopK, JumpReLU, Gated, Matryoshka ...) goes here: its spec, its module, its name in `Sparsity`. A spec
says what `decoder_norm="auto"` means for it and whether it has a sparse training step.
Parameters and running state of a sparsity are those of its module, so they train and are saved with the autoencoder.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from saekit import kernels
from saekit.errors import ConfigError
from saekit.kernels import SparseLatents, Step, StepChooser, Weights


class StepState(NamedTuple):
    """What a training step needs besides the batch and the weights."""

    is_dead: Bool[Tensor, " d_sae"]
    sparsity_scale: Float[Tensor, ""]
    """Multiplies the penalty that makes latents sparse; a schedule sets it."""
    decoder_is_free: bool
    """Rows of `W_dec` may have any norm, so a penalty on the latents must be weighted by it."""
    chooser: StepChooser


class Sparsifier(nn.Module, ABC):
    """The part of a sparse autoencoder between its encoder's affine map and its decoder's."""

    active_above: float = 0.0
    """A latent counts as active in a row when it is larger than this."""
    initial_bias: float = 0.0
    """Value that `b_enc` starts from."""

    @abstractmethod
    def forward(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """Latents from pre-activations. Pure."""

    @abstractmethod
    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        """The step on normalised inputs, and the penalties by name as they are added to its reconstruction loss."""

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        """The entries of `forward` above `active_above`, for inputs that are normalised and have b_dec subtracted."""
        latents = self(torch.addmm(weights.b_enc, centred, weights.W_enc_T.T))
        is_active = latents > self.active_above
        rows, columns = is_active.nonzero(as_tuple=True)
        row_offsets = torch.zeros(len(latents) + 1, dtype=torch.int64, device=latents.device)
        row_offsets[1:] = is_active.sum(1).cumsum(0)
        return SparseLatents(row_offsets, columns.int(), latents[rows, columns])


@dataclass(frozen=True, kw_only=True)
class Relu:
    """ReLU latents with an L1 penalty, weighted by decoder norms when the decoder is free.

    Bricken et al. 2023 (Towards Monosemanticity, unit decoder); Conerly et al. 2024 (April update, free decoder).
    """

    l1: float = 5.0
    """Weight of the L1 norm of a row's latents against its squared error summed over features, at E||x||^2 = d_in."""

    decoder_norm: ClassVar[str] = "unit"
    has_sparse_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.l1) and self.l1 >= 0):
            raise ConfigError(f"Relu.l1={self.l1}; it is a finite number, 0 or larger.")

    def build(self, d_sae: int) -> Sparsifier:
        return ReluSparsifier(self)


class ReluSparsifier(Sparsifier):
    def __init__(self, spec: Relu) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        return pre_acts.relu()

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        step = state.chooser.relu_step(x, weights, weigh_by_decoder=state.decoder_is_free)
        return step, {"l1": self.spec.l1 * state.sparsity_scale * step.penalty}

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        return kernels.active_relu(centred, weights) or super().active(centred, weights)


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

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} is not {rule}"
            for name, is_right, rule in (
                ("rho", 0 < self.rho < 1, "between 0 and 1"),
                ("weight", math.isfinite(self.weight) and self.weight >= 0, "a finite number, 0 or larger"),
                ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
                ("active_above", 0 < self.active_above < 1, "between 0 and 1"),
            )
            if not is_right
        ]
        if problems:
            raise ConfigError(f"KLDivergence: {'; '.join(problems)}.")

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

    def forward(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
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


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keep the k largest pre-activations of each row; AuxK trains dead latents (Gao et al. 2024, arXiv:2406.04093)."""

    k: int = 32
    """Latents kept per row; those of them that are negative are zero, so fewer may be active."""
    auxk: float = 1 / 32
    """Weight of AuxK, the share of the error that dead latents fail to explain times d_in; 0 turns it off."""
    k_aux: int | None = None
    """Dead latents per row that AuxK uses; None is half of d_in."""

    decoder_norm: ClassVar[str] = "unit"
    has_sparse_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} is not {rule}"
            for name, is_right, rule in (
                ("k", self.k >= 1, "1 or larger"),
                ("auxk", math.isfinite(self.auxk) and self.auxk >= 0, "a finite number, 0 or larger"),
                ("k_aux", self.k_aux is None or self.k_aux >= 1, "1 or larger"),
            )
            if not is_right
        ]
        if problems:
            raise ConfigError(f"TopK: {'; '.join(problems)}.")

    def build(self, d_sae: int) -> Sparsifier:
        if self.k > d_sae:
            raise ConfigError(f"TopK.k={self.k} exceeds d_sae={d_sae}; lower k or raise d_sae.")
        return TopKSparsifier(self)


class TopKSparsifier(Sparsifier):
    def __init__(self, spec: TopK) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, pre_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        return kernels.topk_latents(pre_acts, self.spec.k)

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        k_aux = (self.spec.k_aux or max(1, x.shape[1] // 2)) if self.spec.auxk > 0 else 0
        step = state.chooser.topk_step(x, weights, self.spec.k, k_aux, state.is_dead)
        return step, {"auxk": self.spec.auxk * step.penalty}

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        return kernels.active_topk(centred, weights, self.spec.k) or super().active(centred, weights)


Sparsity = Relu | KLDivergence | TopK
"""Any sparsity spec. JSON tags, command-line words and test ids come from the names in this union."""
