"""`Sparsifier`, what every sparsity's module can do, and the rules that specs share."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saekit import kernels
from saekit.errors import ConfigError
from saekit.kernels import SparseLatents, Step, StepChooser, Weights

Rule = tuple[str, bool, str]
"""A field's name, whether its value is right, and what is right."""


class StepState(NamedTuple):
    """What a training step needs besides the batch and the weights."""

    is_dead: Bool[Tensor, " d_sae"]
    sparsity_scale: Float[Tensor, ""]
    """Multiplies the penalty that makes latents sparse; a schedule or a target L0 sets it."""
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
    def forward(
        self, pre_acts: Float[Tensor, "batch d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        """Latents from pre-activations, in which `b_enc` is included. Pure, and each row by itself."""

    @abstractmethod
    def training_step(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, state: StepState
    ) -> tuple[Step, dict[str, Tensor]]:
        """The step on normalised inputs, and the penalties by name as they are added to its reconstruction loss."""

    def active(self, centred: Float[Tensor, "batch d_in"], weights: Weights) -> SparseLatents:
        """The entries of `forward` above `active_above`, for inputs that are normalised and have b_dec subtracted."""
        latents = self(torch.addmm(weights.b_enc, centred, weights.W_enc_T.T), weights.b_enc)
        return active_entries(latents, latents > self.active_above)

    def set_progress_(self, share: float) -> None:
        """Empty hook, called before each training step with the share of the run that is over, in 0..1."""

    def lr_scales(self) -> dict[str, float]:
        """Learning rates of parameters, by name, as multiples of the others'; none by default."""
        return {}

    def project_(self) -> None:
        """Empty hook, called after each optimizer step."""

    def reset_latents_(self, which: Bool[Tensor, " d_sae"]) -> None:
        """Empty hook: give the parameters of these latents the values they had at the beginning."""


def active_entries(latents: Float[Tensor, "batch d_sae"], is_active: Bool[Tensor, "batch d_sae"]) -> SparseLatents:
    """The entries of a dense matrix where `is_active`."""
    rows, columns = is_active.nonzero(as_tuple=True)
    row_offsets = torch.zeros(len(latents) + 1, dtype=torch.int64, device=latents.device)
    row_offsets[1:] = is_active.sum(1).cumsum(0)
    return SparseLatents(row_offsets, columns.int(), latents[rows, columns])


def active_above(
    centred: Float[Tensor, "batch d_in"], weights: Weights, floors: Float[Tensor, " d_sae"]
) -> SparseLatents:
    """The pre-activations of centred inputs above their latent's floor."""
    found = kernels.active_above(centred, weights, floors)
    if found is None:
        pre_acts = torch.addmm(weights.b_enc, centred, weights.W_enc_T.T)
        found = active_entries(pre_acts, pre_acts > floors)
    return found


def keep_entries(entries: SparseLatents, values: Tensor, keep: Bool[Tensor, " nnz"]) -> SparseLatents:
    """`entries` with other `values`, and of those the ones to `keep`."""
    n_before = torch.cat([entries.row_offsets.new_zeros(1), keep.cumsum(0)])
    return SparseLatents(n_before[entries.row_offsets], entries.latents[keep], values[keep])


def refuse(spec: object, rules: Sequence[Rule]) -> None:
    """Raise `ConfigError` with all rules that the fields of `spec` break."""
    problems = [f"{name}={getattr(spec, name)} is not {rule}" for name, is_right, rule in rules if not is_right]
    if problems:
        raise ConfigError(f"{type(spec).__name__}: {'; '.join(problems)}.")


def short(spec: Any) -> str:
    """The spec as one would write it: its first field, and those that are not at their default."""
    shown = [
        f"{field.name}={getattr(spec, field.name)!r}"
        for i, field in enumerate(dataclasses.fields(spec))
        if i == 0 or getattr(spec, field.name) != field.default
    ]
    return f"{type(spec).__name__}({', '.join(shown)})"


def is_weight(value: float) -> bool:
    """Whether `value` can be the weight of a loss."""
    return math.isfinite(value) and value >= 0


WEIGHT = "a finite number, 0 or larger"
