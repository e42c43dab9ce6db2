"""A contractive autoencoder's code moves along the data and not off it.

Command   python scripts/classic/contractive_tangents.py
Data      Points on a circle.
Claim     With a penalty on ||df/dx||_F^2 the input direction that moves the code of a deep encoder most is the tangent
          of the circle; without one it is any. All singular values are below 1. The decoder's norms are limited: it
          cannot undo the penalty by growing. Rifai et al. 2011; Goodfellow et al. 2016, section 14.7.
"""

import math

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREY, ORANGE, RED, Demo, start

import saekit as sk

WEIGHTS = (0.0, 0.1, 0.5)


def main(demo: Demo) -> None:
    """Train with three weights of the penalty; take the Jacobian apart on the circle."""
    angle = torch.rand(demo.pick(50_000, 1000)) * 2 * math.pi
    data = torch.stack([angle.cos(), angle.sin()], 1)
    models = [
        sk.ContractiveAutoencoder(
            sk.ContractiveAutoencoderConfig(
                d_in=2, d_latent=8, weight=weight, code="identity", network=sk.Mlp(hidden=(64,))
            )
        )
        for weight in WEIGHTS
    ]
    rows = sk.ShuffledRows(data, 256, n_epochs=demo.pick(8.0, 1.0))
    sk.fit(models, rows, sk.FitConfig(lr=5e-3, lr_decay_fraction=0.5, progress=False))

    angle = torch.linspace(0, 2 * math.pi, 361)[:-1]
    x, tangent = torch.stack([angle.cos(), angle.sin()], 1), torch.stack([-angle.sin(), angle.cos()], 1)
    cosines, ratios, largest = [], [], []
    for model in models:
        jacobian = model.jacobian(x)
        cosines.append((model.tangents(x, 1)[:, 0] * tangent).sum(1).abs())
        across, along = ((jacobian @ d[..., None]).norm(dim=(1, 2)) for d in (x, tangent))
        ratios.append(float((across / along).mean()))
        largest.append(float(torch.linalg.svdvals(jacobian).max()))
    bare = float(cosines[0].mean())
    for weight, cosine in zip(WEIGHTS, cosines, strict=True):
        mean = float(cosine.mean())
        demo.row(
            f"mean |cos| of the strongest direction and the tangent, penalty {weight}",
            mean,
            "> 0.99" if weight else "lower than with a penalty",
            "the ring's tangent, exact",
            mean > 0.99 if weight else mean < min(float(c.mean()) for c in cosines[1:]),
        )
    demo.row(
        "sensitivity across the ring per sensitivity along it, penalty 0.5",
        ratios[-1],
        f"< {ratios[0]:.3f}, that without a penalty",
        "the same run",
        ratios[-1] < ratios[0],
    )
    demo.row(
        "largest singular value of the Jacobian, penalty 0.5",
        largest[-1],
        "< 1: contracting",
        "Goodfellow et al. 2016, section 14.7",
        largest[-1] < 1,
    )
    print(f"without a penalty: |cos| {bare:.3f}, largest singular value {largest[0]:.2f}")
    draw(demo, models)


def draw(demo: Demo, models: list[sk.ContractiveAutoencoder]) -> None:
    """For each penalty the strongest direction at points of the ring, over a map of how much the code moves there."""
    figure, axes = plt.subplots(1, len(models), figsize=(10, 3.7))
    angle = torch.linspace(0, 2 * math.pi, 33)[:-1]
    x = torch.stack([angle.cos(), angle.sin()], 1)
    side = torch.linspace(-1.6, 1.6, 60)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
    for axis, model in zip(axes, models, strict=True):
        sensitivity = model.jacobian(grid).square().sum((1, 2)).sqrt().reshape(60, 60)
        axis.contourf(side, side, sensitivity / sensitivity.max(), levels=15, cmap="Greys", alpha=0.6)
        axis.plot(*torch.stack([angle.cos(), angle.sin()]), color=RED, linewidth=0.8)
        weight = model.config.weight
        colour = ORANGE if weight == 0 else BLUE
        directions = model.tangents(x, 1)[:, 0]
        for sign in (1, -1):
            axis.quiver(*x.T, *(sign * directions).T, color=colour, scale=9, width=0.008, headwidth=3)
        tangent = torch.stack([-angle.sin(), angle.cos()], 1)
        cosine = float((directions * tangent).sum(1).abs().mean())
        axis.set_title(f"penalty {weight}: |cos| = {cosine:.3f}")
        axis.set_aspect("equal")
        axis.set_axis_off()
    figure.suptitle("The input direction that moves the code most; grey: how much it moves", color=GREY)
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
