"""The training step of a sparse autoencoder: a dense reference, an exact sparse one, and the choice between them."""

from saekit.kernels.reference import auxk, pre_activations, relu_step, topk_latents, topk_step
from saekit.kernels.types import SparseLatents, Step, Weights

__all__ = [
    "SparseLatents",
    "Step",
    "Weights",
    "auxk",
    "pre_activations",
    "relu_step",
    "topk_latents",
    "topk_step",
]
