"""`ClassicSparseAutoencoder`: a sigmoid code, kept sparse by an L1 penalty or by KL(rho || rho_hat).

Ng 2011 (CS294A lecture notes, Sparse autoencoder); Goodfellow et al. 2016, section 14.2.1. For the wide dictionaries of
interpretability there is `SparseAutoencoder`.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.autoencoders.base import LossTerms
from saekit.autoencoders.encoder_decoder import EncoderDecoder, check_sizes
from saekit.autoencoders.likelihoods import Likelihood, SquaredError
from saekit.autoencoders.modules import Activation, Mlp, Network, linear_layers
from saekit.autoencoders.norms import limit_outgoing_norms_
from saekit.autoencoders.sparsity import KLDivergence, KLDivergenceSparsifier
from saekit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class L1:
    """The sum of a row's latents, which are all positive."""

    weight: float = 0.1
    """Against the reconstruction loss summed over features."""
    active_above: float = 0.5
    """A latent counts as active above this; 0.5 is a positive pre-activation."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf or not 0 < self.active_above < 1:
            raise ConfigError(
                f"L1: weight={self.weight} is 0 or larger, active_above={self.active_above} between 0 and 1."
            )


@dataclass(frozen=True, kw_only=True)
class ClassicSparseAutoencoderConfig:
    """What a classic sparse autoencoder is. How it is trained belongs to `fit`."""

    d_in: int
    """Width of a row; an image is flattened."""
    d_latent: int
    """Width of the code, often above d_in."""
    sparsity: L1 | KLDivergence = field(default_factory=KLDivergence)
    """What makes the code sparse. `L1` is the easier one; the KL sets how often each latent is on: its lifetime, so
    that a latent which is always at rho costs nothing."""
    network: Network = field(default_factory=lambda: Mlp(hidden=()))
    """Encoder and decoder."""
    likelihood: Likelihood = field(default_factory=SquaredError)
    """What the reconstruction is measured by."""
    decoder_norm: Literal["auto", "unit", "free"] = "auto"
    """`unit`: no unit's outgoing weights in the decoder are longer than 1; `free`: any. `auto` is unit for L1, which a
    small code and a large decoder would undo, and free for the KL, which sets the code's scale by itself."""
    weight_decay: float = 0.0
    """Weight of half the squared norm of all weights (not biases) in the loss."""
    seed: int = 0
    """Seed of the initial weights."""

    code: ClassVar[Activation] = "sigmoid"

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_latent")
        problems = []
        if self.decoder_norm not in ("auto", "unit", "free"):
            problems.append(f"decoder_norm={self.decoder_norm!r} is not 'auto', 'unit' or 'free'")
        if not 0 <= self.weight_decay < math.inf:
            problems.append(f"weight_decay={self.weight_decay} is not a number, 0 or larger")
        if problems:
            raise ConfigError(f"ClassicSparseAutoencoderConfig: {'; '.join(problems)}.")


@final
class ClassicSparseAutoencoder(EncoderDecoder):
    """x_hat = g(sigmoid(f(x))) with a penalty on the code, which may be wider than the data."""

    Config: ClassVar[type] = ClassicSparseAutoencoderConfig
    config: ClassicSparseAutoencoderConfig

    def __init__(
        self,
        config: ClassicSparseAutoencoderConfig,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config, encoder=encoder, decoder=decoder)
        if isinstance(config.sparsity, KLDivergence):
            self.sparsifier = KLDivergenceSparsifier(config.sparsity, config.d_latent)
            last = linear_layers(self.encoder)[-1:]
            if last and last[0].bias is not None:
                # At rho from the first step, as the running mean is.
                with torch.no_grad():
                    last[0].bias.fill_(self.sparsifier.initial_bias)
        self.project_()

    @property
    def decoder_is_free(self) -> bool:
        if self.config.decoder_norm == "auto":
            return isinstance(self.config.sparsity, KLDivergence)
        return self.config.decoder_norm == "free"

    @property
    def rho_hat(self) -> Float[Tensor, " d_latent"]:
        """Running mean activation of each latent; raises `ConfigError` with L1, which has none."""
        if not isinstance(self.config.sparsity, KLDivergence):
            raise ConfigError("A running rho_hat is kept by sparsity=KLDivergence() only; this one is trained with L1.")
        return self.sparsifier.log_rho_hat.exp()

    def latents_of(self, pre_acts: Float[Tensor, "batch d_code"]) -> Float[Tensor, "batch d_latent"]:
        return pre_acts.sigmoid()

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """`terms`: `reconstruction` (summed over features), `l1` or `kl` and `weight_decay` as added, and `l0`.

        Batch means. The KL is that of the running rho_hat, which is moved by the batch first.
        """
        self.check(x)
        pre_acts = self.pre_activations(x)
        latents = self.latents_of(pre_acts)
        output = self.output(latents)
        parts = {"reconstruction": self.likelihood.training_nll(output, x).mean()}
        spec = self.config.sparsity
        if isinstance(spec, KLDivergence):
            parts["kl"] = spec.weight * self.sparsifier.divergence(pre_acts)
        else:
            parts["l1"] = spec.weight * latents.sum(1).mean()
        if self.config.weight_decay > 0:
            weights = [p for p in (*self.encoder.parameters(), *self.decoder.parameters()) if p.ndim > 1]
            parts["weight_decay"] = (
                self.config.weight_decay / 2 * torch.stack([w.square().sum() for w in weights]).sum()
            )
        total = torch.stack([part.to(parts["reconstruction"].dtype) for part in parts.values()]).sum()
        with torch.no_grad():
            terms = {name: part.detach() for name, part in parts.items()}
            terms["l0"] = (latents > spec.active_above).sum(1).to(total.dtype).mean()
            x_hat = self.likelihood.mean(output)
        return LossTerms(total, terms, x_hat, latents.detach())

    def project_(self) -> None:
        """Shorten the decoder's outgoing weights to norm 1 where they are longer, unless it is free."""
        if not self.decoder_is_free:
            limit_outgoing_norms_(self.decoder)
