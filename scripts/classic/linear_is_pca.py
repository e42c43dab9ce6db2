"""The linear autoencoder is principal component analysis.

Command   python scripts/classic/linear_is_pca.py
Data      1,797 handwritten digits of 64 pixels (scikit-learn).
Claim     A linear autoencoder with 10 latents, trained by gradient descent, ends on the span of the 10 first
          eigenvectors of the covariance, with an error equal to the sum of the 54 eigenvalues behind them; every other
          set of eigenvectors is a saddle that it leaves. Its latents are *not* PCA's coordinates, but are turned into
          them by one small decomposition. Bourlard and Kamp 1988; Baldi and Hornik 1989; Oja 1982.
"""

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREY, ORANGE, RED, Demo, digits, start, tile

import saekit as sk
from saekit.autoencoders import covariance_spectrum, eigenvalue_tail, oja_step_, principal_angles

K = 10
THEORY = "Baldi and Hornik 1989; eigenvalues computed in this run"


def main(demo: Demo) -> None:
    """Train, compare with the eigenvectors, start in a saddle, run Oja's rule."""
    data = digits()
    x = torch.cat([data.train, data.test]).double()
    _, vectors = covariance_spectrum(x)
    tail = float(eigenvalue_tail(x, K))
    steps = demo.pick(2000, 40)

    trained, curve = train(x, make(seed=0), 2 * steps)
    angle = float(principal_angles(trained.W_dec.detach(), vectors[:K]).max())
    excess = float(trained.nll(x).mean().detach()) / tail - 1
    demo.row(
        "largest principal angle between decoder and PCA span, digits, k = 10", angle, "< 1e-3", THEORY, angle < 1e-3
    )
    demo.row("relative excess of the loss over the eigenvalue tail", abs(excess), "< 1e-4", THEORY, abs(excess) < 1e-4)
    axes = trained.principal_axes(x).axes
    cosine = float((axes * vectors[:K]).sum(1).abs().min())
    demo.row(
        "least |cosine| of principal_axes() and the eigenvectors, one by one", cosine, "> 0.999", THEORY, cosine > 0.999
    )
    exact = make(seed=0)
    exact.fit_closed_form_(x)
    gap = abs(float(exact.nll(x).mean().detach()) / tail - 1)
    demo.row("relative excess of the closed form (SVD)", gap, "< 1e-9", THEORY, gap < 1e-9)

    saddle = make(seed=0)
    saddle.set_axes_(vectors[[*range(K - 1), K]], x.mean(0))
    saddle.training_loss(x).total.backward()
    gradient = max(float(p.grad.abs().max()) for p in saddle.parameters())
    demo.row("largest gradient entry on eigenvectors 1-9 and 11", gradient, "< 1e-10", THEORY, gradient < 1e-10)
    saddle.zero_grad()
    at_saddle = float(saddle.nll(x).mean().detach())
    with torch.no_grad():
        for parameter in saddle.parameters():
            parameter += 1e-4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(parameter)
    left, leaving = train(x, saddle, steps)
    error = float(left.nll(x).mean().detach())
    demo.row(
        "relative excess after leaving that saddle by a nudge of 1e-4",
        error / tail - 1,
        "< 1e-4",
        THEORY,
        error / tail - 1 < 1e-4,
    )

    w = torch.randn(1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 8
    oja = []
    for _ in range(demo.pick(400, 20)):
        oja_step_(w, x - x.mean(0), lr=0.2)
        oja.append(float((w @ vectors[0]).abs() / w.norm()))
    demo.row("|cosine| of Oja's neuron and the first eigenvector", oja[-1], "> 0.999", "Oja 1982", oja[-1] > 0.999)
    others = [train(x, make(seed=seed), steps)[1] for seed in range(1, demo.pick(3, 2))]
    worst = max(each[-1] for each in others) / tail - 1
    demo.row("worst relative excess of 2 other random starts", worst, "< 1e-4 (no local minima)", THEORY, worst < 1e-4)
    demo.save_figure(draw(x, trained, axes, vectors, [curve, *others], leaving, at_saddle, tail, oja))


def make(seed: int) -> sk.LinearAutoencoder:
    """In float64, so that what is left is theory and not rounding."""
    return sk.LinearAutoencoder(sk.LinearAutoencoderConfig(d_in=64, d_latent=K, seed=seed)).double()


def train(x, model, steps):
    """Full batches; the mean loss of every 20 steps."""
    model.set_data_mean_(x.mean(0))
    config = sk.FitConfig(lr=0.01, lr_warmup_fraction=0.0, lr_decay_fraction=0.7, clip_grad_norm=0.0, log_every=20)
    result = sk.fit([model], [x], config, n_tokens=steps * len(x))
    return model, [record["loss"] for record in result.metrics]


@torch.no_grad()
def draw(x, trained, axes, vectors, curves, leaving, at_saddle, tail, oja):
    """Loss to the tail; axes three ways; correlations of the codes; Oja's neuron."""
    figure = plt.figure(figsize=(11, 4.2))
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1.25, 1.3, 0.9])
    axis = left.subplots()
    for i, curve in enumerate(curves):
        axis.plot(
            [20 * (j + 1) for j in range(len(curve))],
            [max(value - tail, 1e-12) for value in curve],
            color=BLUE,
            lw=1,
            alpha=0.8,
            label="random starts" if i == 0 else None,
        )
    axis.plot(
        [20 * (j + 1) for j in range(len(leaving))],
        [max(value - tail, 1e-12) for value in leaving],
        color=RED,
        label="from a saddle, nudged",
    )
    axis.axhline(at_saddle - tail, color=GREY, ls="--", label=r"saddle: $\lambda_{10} - \lambda_{11}$")
    axis.set(yscale="log", xlabel="step", title=f"loss above the eigenvalue tail ({tail:.4f})", ylim=(1e-9, None))
    axis.legend()
    rows = middle.subplots(3, 1)
    decoder = torch.nn.functional.normalize(trained.W_dec, dim=1)
    signs = (axes * vectors[:K]).sum(1, keepdim=True).sign()
    names = ("decoder rows, as trained", "principal_axes() of it", "eigenvectors")
    for position, each in enumerate((decoder, axes, signs * vectors[:K])):
        scaled = 0.5 + 0.5 * each / each.abs().amax(1, keepdim=True)
        rows[position].imshow(tile(scaled, K // 2, 8, fill=0.5), cmap="RdBu_r", vmin=0, vmax=1)
        rows[position].set_title(names[position])
        rows[position].axis("off")
    above, below = right.subplots(2, 1)
    above.imshow(torch.corrcoef(trained.encode(x).T), cmap="RdBu_r", vmin=-1, vmax=1)
    above.set(title="correlations of the codes", xticks=[], yticks=[])
    below.plot(oja, color=ORANGE)
    below.set(title="Oja's neuron: |cos| to $u_1$", xlabel="step", ylim=(0, 1.05))
    return figure


if __name__ == "__main__":
    start(main)
