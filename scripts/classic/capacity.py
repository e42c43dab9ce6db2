"""Capacity: one number that follows a curve, one that memorises, and a code that has nothing to leave out.

Command   python scripts/classic/capacity.py
Data      A noisy ring in the plane; 64 random points in 8 dimensions and as many held out; digits; sin on an interval.
Claim     Behind a code of one number a nonlinear autoencoder follows a ring to which PCA fits a line. A decoder that is
          strong enough stores the training set behind one number and knows nothing of other points (Goodfellow et al.
          2016, section 14.1). As wide as the data, a linear code copies. One hidden layer fits a continuous function on
          an interval (Cybenko 1989).
"""

import math

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREEN, GREY, ORANGE, RED, Demo, digits, pca_sum_of_squares, start, sum_of_squares
from torch import Tensor

import saekit as sk

HERE = "in this run"


def main(demo: Demo) -> None:
    """A ring, 64 points, a code as wide as the data, one hidden layer."""
    ring, held_ring = circle(1000, seed=0), circle(1000, seed=1)
    curve = deep(2, 1, (64, 64), seed=1)
    train(demo, curve, ring, 6000, batch_size=200)
    error, line = sum_of_squares(curve, held_ring), pca_sum_of_squares(ring, held_ring, 1)
    demo.row(
        "noisy ring through one number: squared error of other points",
        error,
        f"< {line / 2:.3f} (half of PCA-1)",
        f"PCA-1: {line:.3f}, {HERE}",
        error < line / 2,
    )

    generator = torch.Generator().manual_seed(2)
    points, others = torch.randn(2, 64, 8, generator=generator)
    memory = deep(8, 1, (256, 256), seed=0)
    curves = train(demo, memory, points, 8000, batch_size=64, held_out=others)
    on_train, on_others = sum_of_squares(memory, points), sum_of_squares(memory, others)
    variance = float((others - points.mean(0)).square().sum(1).mean())
    demo.row(
        "64 random points behind one number: squared error, training points",
        on_train,
        f"< {0.1 * variance:.2f} (a tenth of the variance)",
        f"variance {variance:.2f}, {HERE}",
        on_train < 0.1 * variance,
    )
    demo.row(
        "the same autoencoder: squared error, other points",
        on_others,
        f"> {0.8 * variance:.2f} (0.8 of the variance: nothing learnt)",
        f"variance {variance:.2f}, {HERE}",
        on_others > 0.8 * variance,
    )

    data = digits()
    wide = sk.LinearAutoencoder(sk.LinearAutoencoderConfig(d_in=64, d_latent=64)).double()
    wide.fit_closed_form_(data.train.double())
    copied = sum_of_squares(wide, data.test.double())
    demo.row(
        "linear code as wide as the data: squared error of test digits",
        copied,
        "< 1e-8 (it copies)",
        "theory",
        copied < 1e-8,
    )

    t = torch.linspace(-math.pi, math.pi, 512)[:, None]
    fitted = {width: fit_function(demo, t, width) for width in (4, 64)}
    worst = float((fitted[64] - target(t)).abs().max())
    demo.row(
        "one hidden layer of 64 units on a continuous function: largest error",
        worst,
        "< 0.05",
        "Cybenko 1989 promises that some width suffices",
        worst < 0.05,
    )
    demo.save_figure(draw(ring, curve, curves, variance, t, fitted))


def deep(d_in: int, d_latent: int, hidden: tuple[int, ...], seed: int) -> sk.DeepAutoencoder:
    """A plain one, trained on squared error."""
    return sk.DeepAutoencoder(
        sk.DeepAutoencoderConfig(d_in=d_in, d_latent=d_latent, network=sk.Mlp(hidden=hidden), seed=seed)
    )


def circle(n: int, seed: int) -> Tensor:
    """Points of a circle of radius 1 with noise of 0.05."""
    generator = torch.Generator().manual_seed(seed)
    angles = 2 * math.pi * torch.rand(n, generator=generator)
    points = torch.stack([angles.cos(), angles.sin()], 1)
    return points + 0.05 * torch.randn(n, 2, generator=generator)


def train(demo, model, x, n_steps, batch_size, held_out=None) -> tuple[list[int], list[float], list[float]]:
    """Adam to a learning rate of 0; errors of training and held-out rows on the way."""
    steps, on_train, on_others = [0], [sum_of_squares(model, x)], []
    if held_out is not None:
        on_others.append(sum_of_squares(model, held_out))
    n_parts = demo.pick(20, 2) if held_out is not None else 1
    n_steps = demo.pick(n_steps, 20)
    for part in range(n_parts):
        n_epochs = n_steps / n_parts * batch_size / len(x)
        config = sk.FitConfig(
            lr=2e-3 * (1 - part / n_parts) if n_parts > 1 else 2e-3,
            lr_warmup_fraction=0.02,
            lr_decay_fraction=0.0 if n_parts > 1 else 0.5,
            clip_grad_norm=0.0,
        )
        sk.fit([model], sk.ShuffledRows(x, batch_size, n_epochs, seed=part), config)
        steps.append(n_steps // n_parts * (part + 1))
        on_train.append(sum_of_squares(model, x))
        if held_out is not None:
            on_others.append(sum_of_squares(model, held_out))
    return steps, on_train, on_others


def target(t: Tensor) -> Tensor:
    """Continuous, not smooth."""
    return torch.sin(2 * t) + 0.5 * (t.abs() - 1.5).abs()


def fit_function(demo: Demo, t: Tensor, width: int) -> Tensor:
    """One hidden layer of tanh units by Adam on all points."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    with torch.no_grad():
        network[0].weight.mul_(4)
        network[0].bias.uniform_(-8, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    n_steps = demo.pick(4000, 20)
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / n_steps)
        optimizer.zero_grad()
        (network(t) - target(t)).square().mean().backward()
        optimizer.step()
    return network(t).detach()


@torch.no_grad()
def draw(ring, curve, curves, variance, t, fitted):
    """The ring and its curve; errors of the memory; the fitted function."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), width_ratios=[1, 1.2, 1.2])
    left.scatter(*ring.T, s=2, color=GREY, alpha=0.6, label="data")
    codes = curve.encode(ring).flatten()
    low, high = codes.quantile(torch.tensor([0.005, 0.995])).tolist()
    path = curve.decode(torch.linspace(low, high, 400)[:, None])
    left.plot(*path.T, color=BLUE, lw=2.5, label="decoder")
    linear = sk.LinearAutoencoder(sk.LinearAutoencoderConfig(d_in=2, d_latent=1))
    linear.fit_closed_form_(ring)
    left.plot(*linear(ring)[linear.encode(ring).flatten().argsort()].T, color=ORANGE, lw=2, label="PCA-1")
    left.set(aspect="equal", title="a ring through one number", xticks=[], yticks=[], ylim=(-1.3, 1.75))
    left.legend(fontsize=8, loc="upper center", ncols=3, columnspacing=0.8, handlelength=1)
    steps, on_train, on_others = curves
    middle.plot(steps, on_train, color=BLUE, label="training points")
    middle.plot(steps, on_others, color=RED, label="other points")
    middle.axhline(variance, color=GREY, ls="--", label="variance")
    middle.set(yscale="log", xlabel="step", title="squared error of 64 random points")
    middle.legend(fontsize=8)
    right.plot(t, target(t), color=GREY, lw=4, alpha=0.5, label="target")
    for (width, values), color in zip(fitted.items(), (ORANGE, GREEN), strict=True):
        right.plot(t, values, color=color, label=f"{width} hidden units")
    right.set(title="a function fitted by one hidden layer", ylim=(-1.6, 1.7))
    right.legend(fontsize=8, loc="lower left")
    return figure


if __name__ == "__main__":
    start(main)
