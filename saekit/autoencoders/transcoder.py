"""`Transcoder`: latents of one hook point that rebuild another, such as a sublayer's output from its input."""

from dataclasses import dataclass, field
from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.autoencoders.base import Autoencoder
from saekit.autoencoders.sparsity import Sparsity, TopK
from saekit.errors import ConfigError
from saekit.kernels import SparseLatents, Weights


@dataclass(frozen=True, kw_only=True)
class TranscoderConfig:
    """What a transcoder is."""

    d_in: int
    """Width of the activations that it reads."""
    d_out: int
    """Width of the activations that it rebuilds."""
    d_sae: int
    """Number of latents."""
    sparsity: Sparsity = field(default_factory=TopK)
    """What makes the latents sparse."""
    has_skip: bool = False
    """Whether `x @ W_skip` is added to what the latents rebuild."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} is not 1 or larger"
            for name in ("d_in", "d_out", "d_sae")
            if getattr(self, name) < 1
        ]
        if problems:
            raise ConfigError(f"TranscoderConfig: {'; '.join(problems)}.")
        self.sparsity.build(self.d_sae)


class Transcoder(Autoencoder):
    """y ~ sparsify(x W_enc + b_enc) W_dec + b_dec (+ x W_skip), x at one hook point and y at another.

    Dunefsky et al. 2024 (arXiv:2406.11944); with a skip connection Paulo et al. 2025 (arXiv:2501.18823). It is made by
    reading a published one and for inference alone: a store gives one hook point at a time, training needs pairs.
    """

    Config: ClassVar[type] = TranscoderConfig
    config: TranscoderConfig

    def __init__(self, config: TranscoderConfig) -> None:
        super().__init__(config)
        self.sparsifier = config.sparsity.build(config.d_sae)
        self.W_enc_T = nn.Parameter(torch.zeros(config.d_sae, config.d_in))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, config.d_out))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out))
        self.W_skip = nn.Parameter(torch.zeros(config.d_in, config.d_out)) if config.has_skip else None

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder's weights, a view of the parameter `W_enc_T [d_sae d_in]`."""
        return self.W_enc_T.T

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Latents of raw activations of the hook point that it reads."""
        return self.sparsifier(torch.addmm(self.b_enc, x.to(self.b_enc.dtype), self.W_enc), self.b_enc)

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "batch d_in"]) -> SparseLatents:
        """The active latents of raw activations, ordered by row, then by latent."""
        weights = Weights(self.W_enc_T, self.b_enc, self.W_dec, self.b_dec)
        return self.sparsifier.active(x.to(self.b_enc.dtype), weights)

    def decode(self, latents: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_out"]:
        """What the latents add to the activations that are rebuilt: all of them but the skip connection's part."""
        return torch.addmm(self.b_dec, latents, self.W_dec)

    def decode_for(
        self, x: Float[Tensor, "batch d_in"], latents: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, "batch d_out"]:
        """Activations of the other hook point from latents of `x`, its own or edited ones."""
        y = self.decode(latents)
        return y if self.W_skip is None else y + x.to(y.dtype) @ self.W_skip

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> NoReturn:
        """Raises `ConfigError`: training would need the other hook point's activations beside `x`."""
        raise ConfigError("A transcoder is read, not trained: a store gives one hook point at a time, it needs pairs.")

    def __repr__(self) -> str:
        config = self.config
        skip = ", with a skip connection" if config.has_skip else ""
        return f"Transcoder({config.d_in} -> {config.d_sae} -> {config.d_out}, {config.sparsity}{skip})"
