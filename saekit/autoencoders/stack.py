"""Stacks of one-layer machines, trained from the data upwards, and the deep autoencoder that they unroll into.

Hinton and Salakhutdinov 2006 (restricted Boltzmann machines), Bengio et al. 2007 (autoencoders), Vincent et al. 2010
(denoising ones). `saekit.training.pretrain` trains a stack; `fit` fine-tunes what `unroll` makes of it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saekit.autoencoders.base import Autoencoder
from saekit.autoencoders.deep import DeepAutoencoder, DeepAutoencoderConfig
from saekit.autoencoders.encoder_decoder import EncoderDecoder
from saekit.autoencoders.likelihoods import Bernoulli, Likelihood, SquaredError
from saekit.autoencoders.modules import Activation, Mlp, linear_layers
from saekit.autoencoders.rbm import RBM, RBMConfig, Unit
from saekit.errors import ConfigError

IMAGES_30 = (784, 1000, 500, 250, 30)
"""Widths of the digits' and faces' autoencoder of Hinton and Salakhutdinov 2006."""
DOCUMENTS_2 = (2000, 500, 250, 125, 2)
"""Widths of their documents' autoencoder, whose code is drawn in the plane."""


def rbm_stack(
    widths: Sequence[int], *, visible: Unit = "binary", code: Unit = "gaussian", seed: int = 0, **settings: Any
) -> list[RBM]:
    """Untrained machines, one between each two of `widths`; hidden units are binary but for the `code`'s.

    `settings` go to every `RBMConfig`; unlike there, chains carry the visible units' probabilities by default, as the
    machines above the first are trained on probabilities.
    """
    _check_widths(widths)
    settings = {"mean_field_visible": True} | settings
    return [
        RBM(
            RBMConfig(
                d_in=d_in,
                d_latent=d_latent,
                visible=visible if i == 0 else "binary",
                hidden=code if i == len(widths) - 2 else "binary",
                seed=seed + i,
                **settings,
            )
        )
        for i, (d_in, d_latent) in enumerate(pairwise(widths))
    ]


def autoencoder_stack(
    widths: Sequence[int],
    kind: type[EncoderDecoder] = DeepAutoencoder,
    *,
    activation: Activation = "sigmoid",
    code: Activation = "identity",
    likelihood: Likelihood | None = None,
    tied: bool = False,
    seed: int = 0,
    **settings: Any,
) -> list[EncoderDecoder]:
    """Untrained one-layer autoencoders of one `kind` (plain, denoising ...), one between each two of `widths`.

    `likelihood` is that of the data (default `Bernoulli()`); those above reconstruct the activations below: with
    `Bernoulli()` where these are sigmoid, by squared error where not. `settings` go to every config of `kind`.
    """
    _check_widths(widths)
    above: Likelihood = Bernoulli() if activation == "sigmoid" else SquaredError(link=_as_link(activation))
    return [
        kind(
            kind.Config(
                d_in=d_in,
                d_latent=d_latent,
                network=Mlp(hidden=(), tied=tied),
                code=code if i == len(widths) - 2 else activation,
                likelihood=(likelihood or Bernoulli()) if i == 0 else above,
                seed=seed + i,
                **settings,
            )
        )
        for i, (d_in, d_latent) in enumerate(pairwise(widths))
    ]


@torch.no_grad()
def unroll(
    stack: Sequence[Autoencoder], *, likelihood: Likelihood | None = None, tied: bool = False
) -> DeepAutoencoder:
    """The deep autoencoder that goes up through `stack` and down again in reverse, with copies of its weights.

    Before fine-tuning it is the mean-field pass up and down, exactly. Decoder and encoder weights are equal at first
    where the blocks are tied (an RBM is) and drift apart in training; `tied` keeps them equal, which asks for blocks
    that are. `likelihood` is by default the lowest block's. Raises `ConfigError` for blocks that do not fit together.
    """
    blocks = [_block_of(each, i) for i, each in enumerate(stack)]
    if not blocks:
        raise ConfigError("unroll was given no blocks; give a trained stack, e.g. unroll(rbm_stack((784, 256, 30))).")
    problems = []
    for i, (below, above) in enumerate(pairwise(blocks), start=1):
        if below.encoder_weight.shape[0] != above.encoder_weight.shape[1]:
            problems.append(
                f"block {i - 1} has {below.encoder_weight.shape[0]} latents, block {i} takes "
                f"{above.encoder_weight.shape[1]}"
            )
        if below.activation != blocks[0].activation:
            problems.append(f"block {i - 1} has {below.activation!r} latents, block 0 {blocks[0].activation!r} ones")
        if above.link != below.activation:
            problems.append(f"block {i} reconstructs by {above.link!r} the {below.activation!r} latents below it")
    if tied and not all(torch.equal(block.encoder_weight, block.decoder_weight.T) for block in blocks):
        problems.append("tied=True, but blocks have decoders of their own")
    if problems:
        raise ConfigError(f"These blocks do not unroll into one network: {'; '.join(problems)}.")
    widths = [blocks[0].encoder_weight.shape[1], *(block.encoder_weight.shape[0] for block in blocks)]
    model = DeepAutoencoder(
        DeepAutoencoderConfig(
            d_in=widths[0],
            d_latent=widths[-1],
            network=Mlp(hidden=tuple(widths[1:-1]), activation=blocks[0].activation, tied=tied),
            code=blocks[-1].activation,
            likelihood=likelihood or blocks[0].likelihood,
        )
    )
    for layer, block in zip(linear_layers(model.encoder), blocks, strict=True):
        layer.weight.copy_(block.encoder_weight)
        layer.bias.copy_(block.encoder_bias)
    for layer, block in zip(linear_layers(model.decoder), reversed(blocks), strict=True):
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(block.decoder_weight)
        layer.bias.copy_(block.decoder_bias)
    return model


class _Block(NamedTuple):
    """One layer up and one down."""

    encoder_weight: Tensor
    encoder_bias: Tensor
    decoder_weight: Tensor
    decoder_bias: Tensor
    activation: Activation
    link: str
    likelihood: Likelihood


def _block_of(block: Autoencoder, index: int) -> _Block:
    if isinstance(block, RBM):
        config = block.config
        likelihood: Likelihood = Bernoulli() if config.visible == "binary" else SquaredError()
        return _Block(
            block.W.T,
            block.b_hidden,
            block.W,
            block.b_visible,
            "sigmoid" if config.hidden == "binary" else "identity",
            "sigmoid" if config.visible == "binary" else "identity",
            likelihood,
        )
    if isinstance(block, EncoderDecoder):
        up, down = linear_layers(block.encoder), linear_layers(block.decoder)
        is_single = len(list(block.encoder.children())) == len(list(block.decoder.children())) == 1
        if is_single and len(up) == len(down) == 1:
            default = "sigmoid" if isinstance(block.config.likelihood, Bernoulli) else "none"
            return _Block(
                up[0].weight,
                up[0].bias,
                down[0].weight,
                down[0].bias,
                getattr(block.config, "code", "identity"),
                getattr(block.likelihood, "link", default),
                block.config.likelihood,
            )
    raise ConfigError(
        f"Block {index} is {type(block).__name__}({block.config}); a stack is made of RBMs and of autoencoders with "
        "one layer up and one down, network=Mlp(hidden=())."
    )


def _check_widths(widths: Sequence[int]) -> None:
    if len(widths) < 2 or min(widths) < 1:
        raise ConfigError(f"widths={tuple(widths)}; a stack needs the data's width and one or more above it, all >= 1.")


def _as_link(activation: str) -> Any:
    if activation == "gelu":
        raise ConfigError("A stack cannot have 'gelu' activations: no likelihood has that link. Use 'silu' or 'relu'.")
    return activation
