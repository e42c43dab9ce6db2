"""Autoencoders that share one base class, one way to train and one way to save."""

from saekit.autoencoders.base import Autoencoder, LossTerms, load_autoencoder
from saekit.autoencoders.classic_sparse import L1, ClassicSparseAutoencoder, ClassicSparseAutoencoderConfig
from saekit.autoencoders.contractive import ContractiveAutoencoder, ContractiveAutoencoderConfig
from saekit.autoencoders.corruption import Corruption, GaussianNoise, Masking, SaltAndPepper
from saekit.autoencoders.deep import DeepAutoencoder, DeepAutoencoderConfig
from saekit.autoencoders.denoising import DenoisingAutoencoder, DenoisingAutoencoderConfig
from saekit.autoencoders.encoder_decoder import EncoderDecoder
from saekit.autoencoders.information import cross_entropy, entropy, kl_divergence
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
from saekit.autoencoders.planar_maps import (
    PlanarMap,
    autoencoder_map,
    knn_accuracy,
    pca_map,
    trustworthiness,
    tsne_map,
)
from saekit.autoencoders.priors import NormalMixture, Prior, StandardNormal
from saekit.autoencoders.rbm import RBM, LogPartition, RBMConfig
from saekit.autoencoders.sparse import SparseAutoencoder, SparseAutoencoderConfig
from saekit.autoencoders.sparsity import (
    BatchTopK,
    Gated,
    JumpRelu,
    KLDivergence,
    MatryoshkaBatchTopK,
    PAnneal,
    Relu,
    Sparsifier,
    Sparsity,
    TopK,
)
from saekit.autoencoders.stack import DOCUMENTS_2, IMAGES_30, autoencoder_stack, rbm_stack, unroll
from saekit.autoencoders.transcoder import Transcoder, TranscoderConfig
from saekit.autoencoders.unet import UNet, UNetConfig, iou
from saekit.autoencoders.variational import (
    ImportanceWeighted,
    VariationalAutoencoder,
    VariationalAutoencoderConfig,
)
from saekit.kernels import SparseLatents

__all__ = [
    "DOCUMENTS_2",
    "IMAGES_30",
    "L1",
    "RBM",
    "Autoencoder",
    "BatchTopK",
    "Bernoulli",
    "ClassicSparseAutoencoder",
    "ClassicSparseAutoencoderConfig",
    "ContinuousBernoulli",
    "ContractiveAutoencoder",
    "ContractiveAutoencoderConfig",
    "Convolutional",
    "Corruption",
    "Custom",
    "DeepAutoencoder",
    "DeepAutoencoderConfig",
    "DenoisingAutoencoder",
    "DenoisingAutoencoderConfig",
    "EncoderDecoder",
    "Gated",
    "Gaussian",
    "GaussianNoise",
    "ImportanceWeighted",
    "JumpRelu",
    "KLDivergence",
    "Laplace",
    "Likelihood",
    "LinearAutoencoder",
    "LinearAutoencoderConfig",
    "LogPartition",
    "LossTerms",
    "Masking",
    "MatryoshkaBatchTopK",
    "Mlp",
    "Multinomial",
    "Network",
    "NormalMixture",
    "PAnneal",
    "PlanarMap",
    "PrincipalAxes",
    "Prior",
    "RBMConfig",
    "Relu",
    "SaltAndPepper",
    "SparseAutoencoder",
    "SparseAutoencoderConfig",
    "SparseLatents",
    "Sparsifier",
    "Sparsity",
    "SquaredError",
    "StandardNormal",
    "TopK",
    "Transcoder",
    "TranscoderConfig",
    "UNet",
    "UNetConfig",
    "VariationalAutoencoder",
    "VariationalAutoencoderConfig",
    "autoencoder_map",
    "autoencoder_stack",
    "covariance_loss",
    "covariance_spectrum",
    "cross_entropy",
    "eigenvalue_tail",
    "entropy",
    "iou",
    "kl_divergence",
    "knn_accuracy",
    "load_autoencoder",
    "oja_step_",
    "pca_map",
    "principal_angles",
    "rbm_stack",
    "trustworthiness",
    "tsne_map",
    "unroll",
]
