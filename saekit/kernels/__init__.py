"""The training step of a sparse autoencoder: a dense reference, an exact sparse one, and the choice between them."""

from saekit.kernels.adam import adam_step_
from saekit.kernels.chooser import Path, StepChooser, active_above, active_relu, active_topk, row_dots
from saekit.kernels.dense import pre_activations
from saekit.kernels.entries import Decoded, Entries
from saekit.kernels.reference import topk_latents
from saekit.kernels.selection import bf16_selection, cpu_has_bf16
from saekit.kernels.types import SparseLatents, Step, Weights

__all__ = [
    "Decoded",
    "Entries",
    "Path",
    "SparseLatents",
    "Step",
    "StepChooser",
    "Weights",
    "active_above",
    "active_relu",
    "active_topk",
    "adam_step_",
    "bf16_selection",
    "cpu_has_bf16",
    "pre_activations",
    "row_dots",
    "topk_latents",
]
