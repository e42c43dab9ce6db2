"""`DeepAutoencoder`: an encoder and a decoder of any depth and width, and a code narrower or wider than the data."""

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.autoencoders.base import LossTerms
from saekit.autoencoders.encoder_decoder import EncoderDecoder, check_sizes
from saekit.autoencoders.likelihoods import Likelihood, SquaredError
from saekit.autoencoders.modules import ACTIVATIONS, Activation, Mlp, Network
from saekit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DeepAutoencoderConfig:
    """What a deep autoencoder is. How it is trained belongs to `fit`."""

    d_in: int
    """Width of a row; an image is flattened."""
    d_latent: int
    """Width of the code: below d_in it must leave something out, from d_in on it can copy."""
    network: Network = field(default_factory=Mlp)
    """Encoder and decoder."""
    code: Activation = "identity"
    """Activation of the code."""
    likelihood: Likelihood = field(default_factory=SquaredError)
    """What the reconstruction is measured by."""
    code_noise: float = 0.0
    """Standard deviation of Gaussian noise added to the code while training: nearby codes come to mean the same."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_latent")
        if self.code not in ACTIVATIONS:
            raise ConfigError(f"DeepAutoencoderConfig.code={self.code!r} is not one of {', '.join(ACTIVATIONS)}.")
        if not 0 <= self.code_noise < float("inf"):
            raise ConfigError(f"DeepAutoencoderConfig.code_noise={self.code_noise}; it is a number, 0 or larger.")


@final
class DeepAutoencoder(EncoderDecoder):
    """x_hat = g(f(x)), trained on the likelihood of x (Hinton and Salakhutdinov 2006)."""

    Config: ClassVar[type] = DeepAutoencoderConfig
    config: DeepAutoencoderConfig

    def __init__(
        self,
        config: DeepAutoencoderConfig,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config, encoder=encoder, decoder=decoder)
        self.code_activation = ACTIVATIONS[config.code]()

    def latents_of(self, pre_acts: Float[Tensor, "batch d_code"]) -> Float[Tensor, "batch d_latent"]:
        return self.code_activation(pre_acts)

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """`terms`: `reconstruction`, the negative log-likelihood summed over features, mean over the batch."""
        self.check(x)
        latents = self.encode(x)
        noisy = latents
        if self.config.code_noise > 0 and self.training:
            noisy = latents + self.config.code_noise * torch.randn_like(latents)
        output = self.output(noisy)
        loss = self.likelihood.training_nll(output, x).mean()
        with torch.no_grad():
            x_hat = self.likelihood.mean(output)
        return LossTerms(loss, {"reconstruction": loss.detach()}, x_hat, latents.detach())
