"""saekit: extract activations from a checkpoint, train a sparse dictionary on them, browse its features.

Public names are imported on first use (PEP 562), so that reading an index never imports torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC: dict[str, str] = {
    # errors
    "SaekitError": "saekit.errors",
    "ConfigError": "saekit.errors",
    "InputError": "saekit.errors",
    "BackboneError": "saekit.errors",
    "HookPointError": "saekit.errors",
    "StoreError": "saekit.errors",
    "CheckpointError": "saekit.errors",
    "FeatureIndexError": "saekit.errors",
    "MissingExtraError": "saekit.errors",
    # hooks
    "capture": "saekit.hooks",
    "patch": "saekit.hooks",
    # backbones and their inputs
    "Backbone": "saekit.backbones",
    "TokenLayout": "saekit.store.examples",
    "load_backbone": "saekit.backbones",
    "TextWindows": "saekit.backbones",
    "ImageTokens": "saekit.backbones",
    "Document": "saekit.inputs",
    "ImageInput": "saekit.inputs",
    "read_documents": "saekit.inputs",
    "read_images": "saekit.inputs",
    # the store
    "ActivationStore": "saekit.store",
    "Example": "saekit.store",
    "ExampleTable": "saekit.store",
    # autoencoders
    "Autoencoder": "saekit.autoencoders",
    "SparseAutoencoder": "saekit.autoencoders",
    "SparseAutoencoderConfig": "saekit.autoencoders",
    "Relu": "saekit.autoencoders",
    "KLDivergence": "saekit.autoencoders",
    "TopK": "saekit.autoencoders",
    "BatchTopK": "saekit.autoencoders",
    "MatryoshkaBatchTopK": "saekit.autoencoders",
    "JumpRelu": "saekit.autoencoders",
    "Gated": "saekit.autoencoders",
    "PAnneal": "saekit.autoencoders",
    "load_autoencoder": "saekit.autoencoders",
    # the classic family
    "DenoisingAutoencoder": "saekit.autoencoders",
    "DenoisingAutoencoderConfig": "saekit.autoencoders",
    "ContractiveAutoencoder": "saekit.autoencoders",
    "ContractiveAutoencoderConfig": "saekit.autoencoders",
    "ClassicSparseAutoencoder": "saekit.autoencoders",
    "ClassicSparseAutoencoderConfig": "saekit.autoencoders",
    "VariationalAutoencoder": "saekit.autoencoders",
    "VariationalAutoencoderConfig": "saekit.autoencoders",
    "GaussianNoise": "saekit.autoencoders",
    "Masking": "saekit.autoencoders",
    "SaltAndPepper": "saekit.autoencoders",
    "L1": "saekit.autoencoders",
    "StandardNormal": "saekit.autoencoders",
    "NormalMixture": "saekit.autoencoders",
    "UNet": "saekit.autoencoders",
    "UNetConfig": "saekit.autoencoders",
    "LinearAutoencoder": "saekit.autoencoders",
    "LinearAutoencoderConfig": "saekit.autoencoders",
    "DeepAutoencoder": "saekit.autoencoders",
    "DeepAutoencoderConfig": "saekit.autoencoders",
    "RBM": "saekit.autoencoders",
    "RBMConfig": "saekit.autoencoders",
    "Mlp": "saekit.autoencoders",
    "Convolutional": "saekit.autoencoders",
    "Custom": "saekit.autoencoders",
    "SquaredError": "saekit.autoencoders",
    "Gaussian": "saekit.autoencoders",
    "Laplace": "saekit.autoencoders",
    "Bernoulli": "saekit.autoencoders",
    "ContinuousBernoulli": "saekit.autoencoders",
    "Multinomial": "saekit.autoencoders",
    "rbm_stack": "saekit.autoencoders",
    "autoencoder_stack": "saekit.autoencoders",
    "unroll": "saekit.autoencoders",
    "Transcoder": "saekit.autoencoders",
    # others' formats
    "load_sae": "saekit.interop",
    "save_as": "saekit.interop",
    "push_to_hub": "saekit.interop",
    # training
    "FitConfig": "saekit.training",
    "fit": "saekit.training",
    "pretrain": "saekit.training",
    "ShuffledRows": "saekit.training",
    # the index
    "FeatureIndex": "saekit.index",
    # change a model from inside a latent
    "splice": "saekit.intervene",
    "ablate": "saekit.intervene",
    "steer": "saekit.intervene",
    "Scale": "saekit.intervene",
    "Set": "saekit.intervene",
    "Add": "saekit.intervene",
    "prediction_effect": "saekit.evaluation.effects",
    "representation_effect": "saekit.evaluation.effects",
    "direct_logit_attribution": "saekit.evaluation.effects",
    # numbers about a checkpoint
    "Evaluation": "saekit.evaluation",
    # jobs
    "extract": "saekit.jobs.extract",
    "train": "saekit.jobs.train",
    "build_index": "saekit.jobs.index",
    "evaluate": "saekit.jobs.evaluate",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'saekit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
