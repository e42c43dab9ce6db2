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
from saekit.autoencoders.linear import (
    LinearAutoencoder,
    LinearAutoencoderConfig,
    PrincipalAxes,
    covariance_loss,
    covariance_spectrum,
    eigenvalue_tail,
    oja_step_,
    principal_angles,
)
from saekit.autoencoders.modules import Convolutional, Custom, Mlp, Network
from saekit.autoencoders.rbm import RBM, LogPartition, RBMConfig
from saekit.autoencoders.sparse import SparseAutoencoder, SparseAutoencoderConfig
from saekit.autoencoders.sparsity import KLDivergence, Relu, Sparsifier, Sparsity, TopK
from saekit.autoencoders.stack import DOCUMENTS_2, IMAGES_30, autoencoder_stack, rbm_stack, unroll
from saekit.autoencoders.unet import UNet, UNetConfig, iou
from saekit.kernels import SparseLatents

__all__ = [
    "DOCUMENTS_2",
    "IMAGES_30",
    "RBM",
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
    "LinearAutoencoder",
    "LinearAutoencoderConfig",
    "LogPartition",
    "LossTerms",
    "Mlp",
    "Multinomial",
    "Network",
    "PrincipalAxes",
    "RBMConfig",
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
    "autoencoder_stack",
    "covariance_loss",
    "covariance_spectrum",
    "eigenvalue_tail",
    "iou",
    "load_autoencoder",
    "oja_step_",
    "principal_angles",
    "rbm_stack",
    "unroll",
]
