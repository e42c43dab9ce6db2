"""Autoencoders that share one base class, one way to train and one way to save."""

from saekit.autoencoders.base import Autoencoder, LossTerms, load_autoencoder
from saekit.autoencoders.deep import DeepAutoencoder, DeepAutoencoderConfig
from saekit.autoencoders.encoder_decoder import EncoderDecoder
from saekit.autoencoders.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Laplace,
    Likelihood,
    Multinomial,
    SquaredError,
)
from saekit.autoencoders.modules import Convolutional, Custom, Mlp, Network
from saekit.autoencoders.sparse import SparseAutoencoder, SparseAutoencoderConfig
from saekit.autoencoders.sparsity import KLDivergence, Relu, Sparsifier, Sparsity, TopK
from saekit.autoencoders.unet import UNet, UNetConfig, iou
from saekit.kernels import SparseLatents

__all__ = [
    "Autoencoder",
    "Bernoulli",
    "ContinuousBernoulli",
    "Convolutional",
    "Custom",
    "DeepAutoencoder",
    "DeepAutoencoderConfig",
    "EncoderDecoder",
    "Gaussian",
    "KLDivergence",
    "Laplace",
    "Likelihood",
    "LossTerms",
    "Mlp",
    "Multinomial",
    "Network",
    "Relu",
    "SparseAutoencoder",
    "SparseAutoencoderConfig",
    "SparseLatents",
    "Sparsifier",
    "Sparsity",
    "SquaredError",
    "TopK",
    "UNet",
    "UNetConfig",
    "iou",
    "load_autoencoder",
]
