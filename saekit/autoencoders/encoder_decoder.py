"""`EncoderDecoder`: what the classic autoencoders share, around any pair of modules and any likelihood."""

from abc import ABC
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.autoencoders.base import Autoencoder
from saekit.autoencoders.likelihoods import LikelihoodModule
from saekit.autoencoders.modules import Custom, TransposedLinear, seeded
from saekit.errors import ConfigError, InputError


class EncoderDecoder(Autoencoder, ABC):
    """An encoder module, a decoder module, and the likelihood of the data under the decoder's output.

    A subclass's config has `d_in`, `d_latent`, `network`, `likelihood` and `seed`; it writes `training_loss` and may
    fill the hook `latents_of`. Modules of your own come with `network=Custom()`.
    """

    code_per_latent: ClassVar[int] = 1
    """Numbers that the encoder puts out for each latent."""

    def __init__(self, config: Any, *, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> None:
        super().__init__(config)
        if (encoder is None) != (decoder is None):
            raise ConfigError("encoder= and decoder= come as a pair; one of them is missing.")
        if encoder is not None and not isinstance(config.network, Custom):
            raise ConfigError(
                f"Modules of your own were given, but the config asks for {config.network}. Set network=Custom()."
            )
        with seeded(config.seed):
            if encoder is None or decoder is None:
                d_code = self.code_per_latent * config.d_latent
                encoder, decoder = config.network.build(config.d_in, d_code, config.d_latent)
        self.encoder, self.decoder = encoder, decoder
        self.likelihood: LikelihoodModule = config.likelihood.build(config.d_in)

    @final
    def pre_activations(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_code"]:
        """What the encoder puts out, before the code's activation."""
        check_width(x, self.config.d_in)
        code, width = self.encoder(x), self.code_per_latent * self.config.d_latent
        if code.ndim != 2 or code.shape[1] != width:
            raise ConfigError(f"The encoder puts out {list(code.shape)}; it must be [{len(x)}, {width}].")
        return code

    def latents_of(self, pre_acts: Float[Tensor, "batch d_code"]) -> Float[Tensor, "batch d_latent"]:
        """Hook: latents from what the encoder puts out, deterministic. Here they are the same."""
        return pre_acts

    @final
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_latent"]:
        """Latents of each row; in eval mode they do not depend on the other rows."""
        return self.latents_of(self.pre_activations(x))

    @final
    def output(self, latents: Float[Tensor, "batch d_latent"]) -> Float[Tensor, "batch d_in"]:
        """What the decoder puts out: the likelihood's parameters (logits for Bernoulli), not yet a reconstruction."""
        output = self.decoder(latents)
        if output.ndim != 2 or output.shape[1] != self.config.d_in:
            raise ConfigError(
                f"The decoder puts out {list(output.shape)}; it must be [{len(latents)}, {self.config.d_in}]."
            )
        return output

    @final
    def decode(self, latents: Float[Tensor, "batch d_latent"]) -> Float[Tensor, "batch d_in"]:
        """The mean of the data given the latents."""
        return self.likelihood.mean(self.output(latents))

    @final
    def nll(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """-log p(x | encode(x)) of each row, summed over features; pure. Raises `InputError` for data out of range."""
        self.check(x)
        return self.likelihood.nll(self.output(self.encode(x)), x)

    @final
    def check(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Raise `InputError` for another width, NaNs, or values that the likelihood does not have."""
        check_width(x, self.config.d_in)
        self.likelihood.check(x)

    @final
    @torch.no_grad()
    def set_data_mean_(self, mean: Float[Tensor, " d_in"]) -> None:
        """Start from the mean of the data: the decoder's last bias becomes what reconstructs it by itself.

        Several epochs are spared by it. Where a channel of an image has one bias, it is that of the channel's mean.
        """
        bias = self.likelihood.output_for_mean(mean)
        biases = [value for layer in self.decoder.modules() if (value := getattr(layer, "bias", None)) is not None]
        if not biases or len(mean) % biases[-1].numel():
            raise ConfigError("The decoder ends in no layer with a bias that the data's mean could be put into.")
        biases[-1].copy_(bias.reshape(biases[-1].numel(), -1).mean(1))

    def extra_repr(self) -> str:
        return f"d_in={self.config.d_in}, d_latent={self.config.d_latent}"

    def describe(self) -> str:
        """Widths from input to reconstruction in one line, e.g. `784-1000-500-250-30-250-500-1000-784`.

        A convolution is its number of channels, `16c`; layers of other kinds are left out.
        """
        widths = [str(self.config.d_in)]
        for layer in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(layer, (nn.Linear, TransposedLinear)):
                widths.append(str(layer.weight.shape[0]))
            elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                widths.append(f"{layer.out_channels}c")
        return "-".join(widths)


def check_width(x: Tensor, d_in: int) -> None:
    """Raise `InputError` unless `x` is `[batch d_in]`."""
    if x.ndim != 2 or x.shape[1] != d_in:
        raise InputError(f"x has shape {list(x.shape)}; this autoencoder takes rows of d_in={d_in}, e.g. x.flatten(1).")


def check_sizes(config: Any, *names: str) -> None:
    """Raise `ConfigError` that lists which of the sizes `names` of `config` are below 1."""
    wrong = [f"{name}={getattr(config, name)}" for name in names if getattr(config, name) < 1]
    if wrong:
        raise ConfigError(f"{type(config).__name__}: {', '.join(wrong)}; sizes are 1 or larger.")
