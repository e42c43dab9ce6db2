"""What makes latents sparse: one file each, with the frozen spec that people write and the module it builds.

A new one is a file here and a name in `Sparsity`. A spec says what `decoder_norm="auto"` means for it, whether it has a
sparse training step and whether it has a penalty whose weight can be steered to a target L0. Parameters and running
state of a sparsity are those of its module, so they train and are saved with the autoencoder.
"""

from saekit.autoencoders.sparsity.base import Sparsifier, StepState
from saekit.autoencoders.sparsity.batch_topk import BatchTopK, BatchTopKSparsifier, MatryoshkaBatchTopK
from saekit.autoencoders.sparsity.gated import Gated, GatedSparsifier
from saekit.autoencoders.sparsity.jump_relu import JumpRelu, JumpReluSparsifier
from saekit.autoencoders.sparsity.kl_divergence import KLDivergence, KLDivergenceSparsifier
from saekit.autoencoders.sparsity.p_anneal import PAnneal, PAnnealSparsifier
from saekit.autoencoders.sparsity.relu import Relu, ReluSparsifier
from saekit.autoencoders.sparsity.topk import TopK, TopKSparsifier

Sparsity = Relu | KLDivergence | TopK | BatchTopK | MatryoshkaBatchTopK | JumpRelu | Gated | PAnneal
"""Any sparsity spec. JSON tags, command-line words and test ids come from the names in this union."""

__all__ = [
    "BatchTopK",
    "BatchTopKSparsifier",
    "Gated",
    "GatedSparsifier",
    "JumpRelu",
    "JumpReluSparsifier",
    "KLDivergence",
    "KLDivergenceSparsifier",
    "MatryoshkaBatchTopK",
    "PAnneal",
    "PAnnealSparsifier",
    "Relu",
    "ReluSparsifier",
    "Sparsifier",
    "Sparsity",
    "StepState",
    "TopK",
    "TopKSparsifier",
]
