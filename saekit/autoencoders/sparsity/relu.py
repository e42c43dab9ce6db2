"""ReLU latents with an L1 penalty."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from saekit import kernels
from saekit.autoencoders.sparsity.base import WEIGHT, Sparsifier, StepState, is_weight, refuse
from saekit.kernels import SparseLatents, Step, Weights


@dataclass(frozen=True, kw_only=True)
class Relu:
    """ReLU latents with an L1 penalty, weighted by decoder norms when the decoder is free.

    Bricken et al. 2023 (Towards Monosemanticity, unit decoder); Conerly et al. 2024 (April update, free decoder).
    """

    l1: float = 5.0
    """Weight of the L1 norm of a row's latents against its squared error summed over features, at E||x||^2 = d_in."""

    decoder_norm: ClassVar[str] = "unit"
    has_sparse_step: ClassVar[bool] = True
    has_penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse(self, [("l1", is_weight(self.l1), WEIGHT)])

    def build(self, d_sae: int) -> Sparsifier:
        return ReluSparsifier(self)


class ReluSparsifier(Sparsifier):
    def __init__(self, spec: Relu) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, pre_acts: Float[Tensor, "batch d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        return pre_acts.relu()

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        step = state.chooser.relu_step(x, weights, weigh_by_decoder=state.decoder_is_free)
        return step, {"l1": self.spec.l1 * state.sparsity_scale * step.penalty}

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        return kernels.active_relu(centred, weights) or super().active(centred, weights)
