"""Autoencoders that share one base class, one way to train and one way to save."""

from saekit.autoencoders.base import Autoencoder, LossTerms, load_autoencoder
from saekit.autoencoders.sparse import SparseAutoencoder, SparseAutoencoderConfig
from saekit.autoencoders.sparsity import KLDivergence, Relu, Sparsifier, Sparsity, TopK
from saekit.kernels import SparseLatents

__all__ = [
    "Autoencoder",
    "KLDivergence",
    "LossTerms",
    "Relu",
    "SparseAutoencoder",
    "SparseAutoencoderConfig",
    "SparseLatents",
    "Sparsifier",
    "Sparsity",
    "TopK",
    "load_autoencoder",
]
