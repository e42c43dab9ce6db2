"""`ContractiveAutoencoder`: a code that moves as little as it can when the input does, ||df/dx||_F^2 being penalised.

Rifai et al. 2011 (Contractive auto-encoders, ICML). The probes are Hutchinson's 1990, with signs as in Rademacher's.
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
from saekit.autoencoders.modules import ACTIVATIONS, Activation, Mlp, Network
from saekit.autoencoders.norms import limit_outgoing_norms_
from saekit.errors import ConfigError

# Up to this many latents the exact Jacobian (a backward pass for each) is what "auto" means for deep encoders.
_EXACT_UP_TO = 16


@dataclass(frozen=True, kw_only=True)
class ContractiveAutoencoderConfig:
    """What a contractive autoencoder is. How it is trained belongs to `fit`."""

    d_in: int
    """Width of a row; an image is flattened."""
    d_latent: int
    """Width of the code, also above d_in."""
    weight: float = 0.1
    """Weight of ||df/dx||_F^2 against the reconstruction loss summed over features."""
    network: Network = field(default_factory=lambda: Mlp(hidden=()))
    """Encoder and decoder. A tied decoder shrinks with its encoder; of any other, no unit's outgoing weights may be
    longer than 1. Without either the penalty is undone by a smaller code and a larger decoder."""
    code: Activation = "sigmoid"
    """Activation of the code."""
    likelihood: Likelihood = field(default_factory=SquaredError)
    """What the reconstruction is measured by."""
    jacobian: Literal["auto", "closed", "exact", "hutchinson"] = "auto"
    """How the penalty is computed: in closed form (encoders of one layer), from the whole Jacobian (a backward pass per
    latent), or estimated without bias from random probes. "auto": the first of these that is cheap."""
    n_probes: int = 1
    """Probes per row and step of the estimator."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_latent", "n_probes")
        problems = []
        if self.code not in ACTIVATIONS:
            problems.append(f"code={self.code!r} is not one of {', '.join(ACTIVATIONS)}")
        if not 0 <= self.weight < math.inf:
            problems.append(f"weight={self.weight} is not a number, 0 or larger")
        if self.jacobian not in ("auto", "closed", "exact", "hutchinson"):
            problems.append(f"jacobian={self.jacobian!r} is not 'auto', 'closed', 'exact' or 'hutchinson'")
        if problems:
            raise ConfigError(f"ContractiveAutoencoderConfig: {'; '.join(problems)}.")


@final
class ContractiveAutoencoder(EncoderDecoder):
    """Reconstruction + weight * ||df/dx||_F^2: contracting in all directions, but for those that data needs apart."""

    Config: ClassVar[type] = ContractiveAutoencoderConfig
    config: ContractiveAutoencoderConfig

    def __init__(
        self,
        config: ContractiveAutoencoderConfig,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config, encoder=encoder, decoder=decoder)
        self.code_activation = ACTIVATIONS[config.code]()
        if config.jacobian == "closed" and self._only_layer is None:
            raise ConfigError(
                "jacobian='closed' needs an encoder of one fully connected layer, e.g. network=Mlp(hidden=()). "
                "Use 'exact' or 'hutchinson' for deeper ones."
            )
        self.project_()

    @property
    def how(self) -> str:
        """How the penalty is computed: what "auto" comes to."""
        if self.config.jacobian != "auto":
            return self.config.jacobian
        if self._only_layer is not None:
            return "closed"
        return "exact" if self.config.d_latent <= _EXACT_UP_TO else "hutchinson"

    def latents_of(self, pre_acts: Float[Tensor, "batch d_code"]) -> Float[Tensor, "batch d_latent"]:
        return self.code_activation(pre_acts)

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """`terms`: `reconstruction` (summed over features) and `contraction` (the penalty as added), batch means."""
        self.check(x)
        latents = self.encode(x)
        output = self.output(latents)
        reconstruction = self.likelihood.training_nll(output, x).mean()
        penalty = self.config.weight * self.contraction(x).mean()
        with torch.no_grad():
            x_hat = self.likelihood.mean(output)
        terms = {"reconstruction": reconstruction.detach(), "contraction": penalty.detach()}
        return LossTerms(reconstruction + penalty, terms, x_hat, latents.detach())

    def contraction(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """||df/dx||_F^2 of each row, computed as `how` says; differentiable in the parameters."""
        if self.how == "closed":
            return self._closed_form(x)
        if self.how == "exact":
            return self._jacobian(x).square().sum((1, 2))
        return self._hutchinson(x)

    def jacobian(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_latent d_in"]:
        """df/dx of each row, exact, whatever `how` is."""
        return self._jacobian(x).detach()

    def tangents(self, x: Float[Tensor, "batch d_in"], k: int) -> Float[Tensor, "batch k d_in"]:
        """The `k` input directions that move the code most, of unit length, the strongest first.

        They are the right singular vectors of df/dx: after training the tangents of the manifold that the data is on.
        """
        if not 1 <= k <= min(self.config.d_in, self.config.d_latent):
            raise ConfigError(f"k={k}; the Jacobian has {min(self.config.d_in, self.config.d_latent)} directions.")
        return torch.linalg.svd(self.jacobian(x), full_matrices=False)[2][:, :k]

    def project_(self) -> None:
        """Shorten the decoder's outgoing weights to norm 1 where they are longer, unless it is tied."""
        if not (isinstance(self.config.network, Mlp) and self.config.network.tied):
            limit_outgoing_norms_(self.decoder)

    @property
    def _only_layer(self) -> nn.Linear | None:
        layers = list(self.encoder) if isinstance(self.encoder, nn.Sequential) else [self.encoder]
        return layers[0] if len(layers) == 1 and isinstance(layers[0], nn.Linear) else None

    def _closed_form(self, x: Tensor) -> Tensor:
        """sum_j phi'(a_j)^2 ||W_j||^2. Through a ReLU's gate no gradient flows, as through its own derivative."""
        layer = self._only_layer
        assert layer is not None
        with torch.enable_grad():
            a = layer(x)
            if not a.requires_grad:
                a = a.requires_grad_()
            (slope,) = torch.autograd.grad(self.code_activation(a).sum(), a, create_graph=True)
        return slope.square().to(layer.weight.dtype) @ layer.weight.square().sum(1)

    def _jacobian(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            latents = self.encode(x)
            n_rows, n_latents = latents.shape
            # One backward pass per latent, as a batch of them; rows do not see each other, so their sum can be taken.
            seeds = torch.eye(n_latents, dtype=latents.dtype, device=x.device)[:, None].expand(-1, n_rows, -1)
            (rows,) = torch.autograd.grad(latents, x, seeds, create_graph=True, is_grads_batched=True)
        return rows.transpose(0, 1)

    def _hutchinson(self, x: Tensor) -> Tensor:
        """E ||v^T J||^2 over signs v, which is ||J||_F^2; with v = (1, ..., 1) alone it would not be."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            latents = self.encode(x)
            total = x.new_zeros(len(x))
            for _ in range(self.config.n_probes):
                signs = torch.empty_like(latents).bernoulli_(0.5).mul_(2).sub_(1)
                (row,) = torch.autograd.grad(latents, x, signs, create_graph=True)
                total = total + row.square().sum(1)
        return total / self.config.n_probes
