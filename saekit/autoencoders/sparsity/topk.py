"""TopK latents, with AuxK for those that are dead."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from saekit import kernels
from saekit.autoencoders.sparsity import annealing
from saekit.autoencoders.sparsity.base import WEIGHT, Sparsifier, StepState, is_weight, refuse
from saekit.errors import ConfigError
from saekit.kernels import SparseLatents, Step, Weights


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keep the k largest pre-activations of each row; AuxK trains dead latents (Gao et al. 2024, arXiv:2406.04093)."""

    k: int = 32
    """Latents kept per row; those of them that are negative are zero, so fewer may be active."""
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
        refuse(
            self,
            [
                *annealing.rules(self.k, self.k_start, self.k_anneal_fraction),
                ("auxk", is_weight(self.auxk), WEIGHT),
                ("k_aux", self.k_aux is None or self.k_aux >= 1, "1 or larger"),
            ],
        )

    def build(self, d_sae: int) -> Sparsifier:
        refuse_large_k(self, d_sae)
        return TopKSparsifier(self)


class TopKSparsifier(Sparsifier):
    def __init__(self, spec: TopK) -> None:
        super().__init__()
        self.spec = spec
        self.k = annealing.AnnealedK(spec.k, spec.k_start, spec.k_anneal_fraction)

    def forward(
        self, pre_acts: Float[Tensor, "batch d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        return kernels.topk_latents(pre_acts, self.k.value)

    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        k_aux = latents_of_auxk(self.spec, x.shape[1])
        step = state.chooser.topk_step(x, weights, self.k.value, k_aux, state.is_dead)
        return step, {"auxk": self.spec.auxk * step.penalty}

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        return kernels.active_topk(centred, weights, self.k.value) or super().active(centred, weights)

    def set_progress_(self, share: float) -> None:
        self.k.set_progress_(share)


def latents_of_auxk(spec: Any, d_in: int) -> int:
    """How many dead latents per row AuxK uses in a spec that keeps k latents; 0 when it is off."""
    return (spec.k_aux or max(1, d_in // 2)) if spec.auxk > 0 else 0


def refuse_large_k(spec: Any, d_sae: int) -> None:
    """Raise `ConfigError` when a row has fewer latents than are to be kept."""
    for name in ("k", "k_start"):
        k = getattr(spec, name)
        if k is not None and k > d_sae:
            raise ConfigError(f"{type(spec).__name__}.{name}={k} exceeds d_sae={d_sae}; lower {name} or raise d_sae.")
