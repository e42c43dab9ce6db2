"""What an autoencoder is: encoder, code, decoder, drawn from the models themselves.

Command   python scripts/classic/structure.py
Data      None.
Claim     x' = g(f(x)), whatever f and g are and however wide the code is: `forward` is `decode` after `encode`. The
          presets of 2006 have the published sizes: 784-1000-500-250-30 and back has 2,837,314 parameters.
"""

import math

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREEN, GREY, ORANGE, Demo, start
from matplotlib.patches import Polygon

import saekit as sk
from saekit.autoencoders import DOCUMENTS_2, IMAGES_30
from saekit.autoencoders.modules import linear_layers


def main(demo: Demo) -> None:
    """Build five, check the identity and the counts, draw them."""
    models = {
        "linear, 784-30": sk.LinearAutoencoder(sk.LinearAutoencoderConfig(d_in=784, d_latent=30)),
        "overcomplete": deep((784, 1500)),
        "images (2006)": deep(IMAGES_30),
        "documents (2006)": deep(DOCUMENTS_2),
        "sparse, 768-24576": None,
    }
    gap = 0.0
    for model in models.values():
        if model is not None:
            x = torch.rand(3, model.config.d_in)
            difference = model(x) - model.decode(model.encode(x))
            gap = max(gap, float(difference.detach().abs().max()))
    demo.row("largest gap between forward(x) and decode(encode(x))", gap, "0", "definition", gap == 0)
    n_parameters = sum(parameter.numel() for parameter in models["images (2006)"].parameters())
    demo.row(
        "parameters of 784-1000-500-250-30 and back",
        n_parameters,
        "2837314",
        "the widths of Hinton and Salakhutdinov 2006",
        n_parameters == 2_837_314,
    )
    widths = {name: widths_of(model) for name, model in models.items() if model is not None}
    widths["sparse, 768-24576"] = [768, 24576, 768]
    demo.save_figure(draw(widths))


def deep(widths: tuple[int, ...]) -> sk.DeepAutoencoder:
    """A deep autoencoder of these widths and their mirror."""
    config = sk.DeepAutoencoderConfig(d_in=widths[0], d_latent=widths[-1], network=sk.Mlp(hidden=widths[1:-1]))
    return sk.DeepAutoencoder(config)


def widths_of(model) -> list[int]:
    """Widths from x to x'."""
    if isinstance(model, sk.LinearAutoencoder):
        return [model.config.d_in, model.config.d_latent, model.config.d_in]
    layers = [*linear_layers(model.encoder), *linear_layers(model.decoder)]
    return [layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers)]


def draw(models: dict[str, list[int]]):
    """Each as a row of bars, as high as the logarithm of a layer's width."""
    figure, axes = plt.subplots(1, len(models), figsize=(12, 2.8), width_ratios=[len(w) + 1 for w in models.values()])
    for axis, (name, widths) in zip(axes, models.items(), strict=True):
        code = len(widths) // 2
        heights = [math.log2(width) / 2 for width in widths]
        for i, (width, height) in enumerate(zip(widths, heights, strict=True)):
            color = ORANGE if i == code else GREY if i in (0, len(widths) - 1) else BLUE if i < code else GREEN
            axis.bar(i, 2 * height, 0.34, bottom=-height, color=color)
            axis.text(i, height + 0.25, str(width), ha="center", fontsize=7)
            if i + 1 < len(widths):
                above = heights[i + 1]
                corners = [(i + 0.17, height), (i + 0.83, above), (i + 0.83, -above), (i + 0.17, -height)]
                axis.add_patch(Polygon(corners, color=BLUE if i < code else GREEN, alpha=0.15, lw=0))
        axis.text(0, -9, "$x$", ha="center")
        axis.text(code, -9, "$f(x)$", ha="center")
        axis.text(len(widths) - 1, -9, "$g(f(x))$", ha="center")
        axis.set(ylim=(-9.2, 8.5), xlim=(-0.7, len(widths) - 0.3), title=name)
        axis.axis("off")
    return figure


if __name__ == "__main__":
    start(main)
