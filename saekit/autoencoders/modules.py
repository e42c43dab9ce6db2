"""Ready encoders and decoders, and how a pair of your own takes their place.

Rows are flat at every interface: an encoder maps `[batch d_in]` to `[batch d_code]`, a decoder `[batch d_latent]` to
`[batch d_in]`; `Convolutional` knows the shape of the image that a row holds. The code's activation and the map from
the decoder's output to a reconstruction are not theirs: they belong to the autoencoder and to its likelihood.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.errors import ConfigError

Activation = Literal["identity", "sigmoid", "tanh", "relu", "silu", "gelu", "softplus"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}
# He et al. 2015 (arXiv:1502.01852) for those that drop half of their input; Glorot and Bengio 2010 for the others.
_GAINS = {"relu": math.sqrt(2), "silu": math.sqrt(2), "gelu": math.sqrt(2), "softplus": math.sqrt(2)}
# A decoder that starts near its bias starts at the data's mean (`set_data_mean_`) and not at noise around it.
_OUTPUT_GAIN = 0.3


class Pair(NamedTuple):
    """What a network spec builds."""

    encoder: nn.Module
    decoder: nn.Module


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Fully connected layers, mirrored in the decoder: 784-1000-500-250-30 is `hidden=(1000, 500, 250)`."""

    hidden: tuple[int, ...] = (512, 256)
    """Widths between the input and the code; empty is one layer."""
    activation: Activation = "silu"
    """After each hidden layer. The weights' initial size follows it."""
    tied: bool = False
    """The decoder's weights are the transposed ones of the encoder; its biases are its own."""
    log1p_input: bool = False
    """The encoder sees log(1 + x), for counts."""

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"Mlp.hidden={self.hidden}; every width is 1 or larger.")
        _check_activation("Mlp", self.activation)

    def build(self, d_in: int, d_code: int, d_latent: int) -> Pair:
        """An encoder `d_in -> d_code` and a decoder `d_latent -> d_in`, from torch's global random state."""
        encoder = _perceptron((d_in, *self.hidden, d_code), self.activation)
        if self.tied:
            if d_code != d_latent:
                raise ConfigError(f"Mlp.tied needs a code as wide as the encoder's output ({d_code}), not {d_latent}.")
            decoder = _mirror(encoder, self.activation)
        else:
            decoder = _perceptron((d_latent, *reversed(self.hidden), d_in), self.activation, _OUTPUT_GAIN)
        return Pair(nn.Sequential(Log1p(), *encoder) if self.log1p_input else encoder, decoder)


@dataclass(frozen=True, kw_only=True)
class Convolutional:
    """Strided convolutions that halve the image, and transposed ones back to the same size, whatever it is."""

    image: tuple[int, int, int]
    """Channels, height and width of the image that a row holds."""
    channels: tuple[int, ...] = (16, 32)
    """Channels after each halving."""
    hidden: tuple[int, ...] = (128,)
    """Widths of fully connected layers between the last image and the code."""
    activation: Activation = "silu"
    """After each convolution and hidden layer."""

    def __post_init__(self) -> None:
        if len(self.image) != 3 or min(self.image) < 1:
            raise ConfigError(f"Convolutional.image={self.image}; it is (channels, height, width), each 1 or larger.")
        if not self.channels or min(self.channels, default=0) < 1 or min(self.hidden, default=1) < 1:
            raise ConfigError(
                f"Convolutional: channels={self.channels} and hidden={self.hidden}; every width is 1 or larger and "
                "there is at least one number of channels."
            )
        _check_activation("Convolutional", self.activation)

    def build(self, d_in: int, d_code: int, d_latent: int) -> Pair:
        """An encoder `d_in -> d_code` and a decoder `d_latent -> d_in`, from torch's global random state."""
        if math.prod(self.image) != d_in:
            raise ConfigError(
                f"Convolutional.image={self.image} holds {math.prod(self.image)} values, but d_in={d_in}."
            )
        act, gain = ACTIVATIONS[self.activation], _GAINS.get(self.activation, 1.0)
        sizes = [self.image[1:]]
        for _ in self.channels:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        widths = (self.image[0], *self.channels)
        down: list[nn.Module] = [nn.Unflatten(1, self.image)]
        for a, b in pairwise(widths):
            down += [_init(nn.Conv2d(a, b, 3, stride=2, padding=1), gain), act()]
        flat = widths[-1] * math.prod(sizes[-1])
        encoder = nn.Sequential(*down, nn.Flatten(), *_perceptron((flat, *self.hidden, d_code), self.activation))
        top = _perceptron((d_latent, *reversed(self.hidden), flat), self.activation)
        up: list[nn.Module] = [*top, act(), nn.Unflatten(1, (widths[-1], *sizes[-1]))]
        for i in range(len(self.channels), 0, -1):
            # A stride of 2 gives 2 size - 1 pixels, or one more where the image on the way down was even.
            (height, width), (above_height, above_width) = sizes[i - 1], sizes[i]
            extra = (height - (2 * above_height - 1), width - (2 * above_width - 1))
            layer = nn.ConvTranspose2d(widths[i], widths[i - 1], 3, stride=2, padding=1, output_padding=extra)
            up += [_init(layer, gain if i > 1 else _OUTPUT_GAIN), *([act()] if i > 1 else [])]
        return Pair(encoder, nn.Sequential(*up, nn.Flatten()))


@dataclass(frozen=True, kw_only=True)
class Custom:
    """Modules of your own, given as `encoder=` and `decoder=` when the autoencoder is made.

    Their tensors are saved, they themselves are not: give modules of the same make again when it is loaded,
    `load_autoencoder(path, encoder=..., decoder=...)`. Build them on flat rows (`nn.Unflatten`, `nn.Flatten`).
    """

    encoder: str = ""
    """What the encoder is, for whoever loads it."""
    decoder: str = ""
    """What the decoder is."""

    def build(self, d_in: int, d_code: int, d_latent: int) -> Pair:
        described = "".join(f"; {name}: {text}" for name, text in vars(self).items() if text)
        raise ConfigError(
            f"network=Custom() needs the modules themselves: pass encoder=({d_in} -> {d_code}) and "
            f"decoder=({d_latent} -> {d_in}), when making it and when loading it "
            f"(load_autoencoder(path, encoder=..., decoder=...)){described}"
        )


Network = Mlp | Convolutional | Custom
"""Any spec of an encoder and its decoder."""


class Log1p(nn.Module):
    """log(1 + x), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log1p()


class TransposedLinear(nn.Module):
    """The linear map of another layer backwards, with a bias of its own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        # In a tuple, so that the shared weight is registered, and saved, once.
        self._layer = (layer,)
        self.bias = nn.Parameter(torch.zeros(layer.in_features))

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The other layer's weight, transposed."""
        return self._layer[0].weight.T

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def linear_layers(module: nn.Module) -> list[nn.Linear | TransposedLinear]:
    """The fully connected layers of a ready encoder or decoder, from its input to its output."""
    return [layer for layer in module.modules() if isinstance(layer, (nn.Linear, TransposedLinear))]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's CPU random state is that of `seed` inside, and what it was before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _perceptron(widths: tuple[int, ...], activation: str, last_gain: float = 1.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        is_last = i == len(widths) - 2
        layers.append(_init(nn.Linear(a, b), last_gain if is_last else _GAINS.get(activation, 1.0)))
        if not is_last:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def _mirror(encoder: nn.Sequential, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in reversed([layer for layer in encoder if isinstance(layer, nn.Linear)]):
        layers += [TransposedLinear(layer), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def _init(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, gain: float) -> nn.Module:
    """Weights of a size at which the variance of activations is kept (times gain^2 for what follows); biases 0."""
    fan_in: float = layer.weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d):
        # Each output pixel is reached by kernel area / stride^2 of the weights of each input channel.
        fan_in = layer.weight.shape[0] * layer.weight[0, 0].numel() / math.prod(layer.stride)
    with torch.no_grad():
        layer.weight.normal_(0.0, gain / math.sqrt(fan_in))
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


def _check_activation(spec: str, name: str) -> None:
    if name not in ACTIVATIONS:
        raise ConfigError(f"{spec}.activation={name!r} is not one of {', '.join(ACTIVATIONS)}.")
