"""`DenoisingAutoencoder`: from a corrupted row back to the clean one, and what it has thereby learnt of the density.

Vincent et al. 2010 (JMLR 11); Alain and Bengio 2014 (arXiv:1211.4246); Vincent 2011 (score matching).
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from saekit.autoencoders.base import LossTerms
from saekit.autoencoders.corruption import Corrupted, Corruption, GaussianNoise
from saekit.autoencoders.encoder_decoder import EncoderDecoder, check_sizes
from saekit.autoencoders.likelihoods import Likelihood, Multinomial, SquaredError
from saekit.autoencoders.modules import ACTIVATIONS, Activation, Mlp, Network
from saekit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DenoisingAutoencoderConfig:
    """What a denoising autoencoder is. How it is trained belongs to `fit`."""

    d_in: int
    """Width of a row; an image is flattened."""
    d_latent: int
    """Width of the code, also above d_in: copying does not undo a corruption."""
    corruption: Corruption = field(default_factory=GaussianNoise)
    """What happens to the input while training."""
    network: Network = field(default_factory=Mlp)
    """Encoder and decoder; `Mlp(hidden=())` is the layer that is stacked."""
    code: Activation = "silu"
    """Activation of the code."""
    likelihood: Likelihood = field(default_factory=SquaredError)
    """What the reconstruction of the clean row is measured by: squared error, cross-entropy (`Bernoulli`) ..."""
    emphasis: tuple[float, float] = (1.0, 1.0)
    """Weights of the loss on corrupted and on clean entries; (1, 0) is full emphasis on what was corrupted."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_latent")
        problems = []
        if self.code not in ACTIVATIONS:
            problems.append(f"code={self.code!r} is not one of {', '.join(ACTIVATIONS)}")
        if len(self.emphasis) != 2 or not all(0 <= w < math.inf for w in self.emphasis) or not sum(self.emphasis):
            problems.append(f"emphasis={self.emphasis} is not two weights, 0 or larger and not both 0")
        if isinstance(self.likelihood, Multinomial) and self.emphasis != (1.0, 1.0):
            problems.append("emphasis weighs single entries, which a Multinomial does not have; leave it at (1, 1)")
        if problems:
            raise ConfigError(f"DenoisingAutoencoderConfig: {'; '.join(problems)}.")


@final
class DenoisingAutoencoder(EncoderDecoder):
    """x_hat = g(f(x~)), compared with the clean x. `encode` and `forward` corrupt nothing, in any mode.

    At the optimum g(f(x~)) = E[x | x~]. With Gaussian noise this is x~ + sigma^2 grad log p_sigma(x~), for every sigma
    (Miyasawa 1961; Robbins 1956, after Tweedie), where p_sigma is the density of the *noisy* data: `score` tends to
    that of the data itself only as sigma falls to 0, and where that has a density.
    """

    Config: ClassVar[type] = DenoisingAutoencoderConfig
    config: DenoisingAutoencoderConfig

    def __init__(
        self,
        config: DenoisingAutoencoderConfig,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config, encoder=encoder, decoder=decoder)
        self.code_activation = ACTIVATIONS[config.code]()

    def latents_of(self, pre_acts: Float[Tensor, "batch d_code"]) -> Float[Tensor, "batch d_latent"]:
        return self.code_activation(pre_acts)

    def corrupt(self, x: Float[Tensor, "batch d_in"], generator: Generator | None = None) -> Corrupted:
        """What training would make of `x`; in eval mode nothing is touched."""
        if not self.training:
            return Corrupted(x, torch.zeros_like(x, dtype=torch.bool))
        return self.config.corruption(x, generator)

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """`terms`: `reconstruction`, the negative log-likelihood of the clean rows given corrupted ones.

        Summed over features (weighted by `emphasis`), mean over the batch. `latents` are those of the corrupted rows.
        """
        self.check(x)
        corrupted = self.corrupt(x)
        latents = self.encode(corrupted.x)
        output = self.output(latents)
        on_corrupted, on_clean = self.config.emphasis
        if on_corrupted == on_clean == 1:
            loss = self.likelihood.training_nll(output, x).mean()
        else:
            # Every entry as a row of its own: the likelihoods that are left are products over entries.
            each = self.likelihood.training_nll(output.reshape(-1, 1), x.reshape(-1, 1)).view_as(x)
            loss = (each * torch.where(corrupted.is_corrupted, on_corrupted, on_clean)).sum(1).mean()
        with torch.no_grad():
            x_hat = self.likelihood.mean(output)
        return LossTerms(loss, {"reconstruction": loss.detach()}, x_hat, latents.detach())

    def denoise(self, x: Float[Tensor, "batch d_in"], n_steps: int = 1) -> Float[Tensor, "batch d_in"]:
        """The clean rows expected behind noisy ones: `forward`, `n_steps` times over.

        More than one step walks on towards the data, to a place a little inside of where the data curves: the mean of
        a piece of a circle is not on it.
        """
        for _ in range(n_steps):
            x = self(x)
        return x

    def vector_field(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """g(f(x)) - x: from each row towards the data."""
        return self(x) - x

    def score(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """(g(f(x)) - x) / sigma^2, the estimate of the gradient of log p_sigma, the density of the *noisy* data.

        Raises `ConfigError` for another corruption than Gaussian noise, for which there is no such identity.
        """
        if not isinstance(self.config.corruption, GaussianNoise):
            raise ConfigError(
                f"A score needs corruption=GaussianNoise(sigma=...); this model was made with {self.config.corruption}."
            )
        return self.vector_field(x) / self.config.corruption.sigma**2
