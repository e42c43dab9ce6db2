"""A sparse code finds parts and kinds of clothes, and its KL penalty still works where the usual code has died.

Command   python scripts/classic/sparse_filters.py
Data      Fashion-MNIST, 30,000 pictures.
Claim     With KL(rho || rho_hat) the mean activation of a sigmoid code is at rho = 0.05 after training, that of every
          latent close to it, and latents write kinds and parts of garments. Computed in log space, the penalty has a
          gradient at pre-activations of -200 and 200, where the usual formula with clamped means has none. With an L1
          penalty no latent is told how often to be on. Ng 2011.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import BLUE, GREY, ORANGE, RED, Demo, fashion_mnist, start, tile
from torch import Tensor

import saekit as sk
from saekit.autoencoders import KLDivergence

N_LATENTS = 64
RHO = 0.05


def saturated_gradient(pre_activation: float) -> float:
    """|gradient| of the penalty for a latent that is at `pre_activation` in all rows, in float32."""
    sparsifier = KLDivergence(rho=RHO, momentum=0.0).build(1)
    a = torch.full((64, 1), pre_activation, requires_grad=True)
    sparsifier.divergence(a).backward()
    return float(a.grad.abs().sum())


def usual_gradient(pre_activation: float) -> float:
    """The same for the formula as it is usually written, with the mean clamped to 1e-6."""
    a = torch.full((64, 1), pre_activation, requires_grad=True)
    mean = a.sigmoid().mean(0).clamp(1e-6, 1 - 1e-6)
    (RHO * (RHO / mean).log() + (1 - RHO) * ((1 - RHO) / (1 - mean)).log()).sum().backward()
    return float(a.grad.abs().sum())


def main(demo: Demo) -> None:
    """Train with the divergence and with L1; look at means, filters and gradients."""
    x = fashion_mnist(demo).train[:30_000]
    shared = {"d_in": 784, "d_latent": N_LATENTS, "weight_decay": 5e-3}
    models = {
        "KL": sk.ClassicSparseAutoencoder(
            sk.ClassicSparseAutoencoderConfig(sparsity=KLDivergence(rho=RHO, weight=30.0), **shared)
        ),
        "L1": sk.ClassicSparseAutoencoder(
            sk.ClassicSparseAutoencoderConfig(sparsity=sk.L1(weight=1.0), decoder_norm="free", **shared)
        ),
    }
    for model in models.values():
        model.set_data_mean_(x.mean(0))
    rows = sk.ShuffledRows(x, 250, n_epochs=demo.pick(8.0, 1.0))
    sk.fit(list(models.values()), rows, sk.FitConfig(lr=5e-3, lr_decay_fraction=0.5, progress=False))
    means, errors = {}, {}
    with torch.no_grad():
        for name, model in models.items():
            means[name] = model.encode(x).mean(0)
            errors[name] = float((model(x) - x).square().sum() / (x - x.mean(0)).square().sum())
    mean, spread = float(means["KL"].mean()), {name: float(each.std()) for name, each in means.items()}
    demo.row(
        "mean activation after training, KL", mean, f"{RHO} within 0.01", "rho, as asked for", abs(mean - RHO) < 0.01
    )
    demo.row(
        "spread of the latents' mean activations, KL",
        spread["KL"],
        f"< {spread['L1']:.4f}, that with L1",
        "the same run",
        spread["KL"] < spread["L1"],
    )
    for at in (-200.0, 200.0):
        ours, usual = saturated_gradient(at), usual_gradient(at)
        demo.row(
            f"|gradient| of the penalty at pre-activations of {at:g}",
            ours,
            f"> 0 (the clamped formula: {usual:g})",
            "float32, 64 rows",
            ours > 0 and usual == 0,
        )
    print(f"unexplained variance: {errors}")
    draw(demo, models["KL"], means, errors)


def draw(demo: Demo, model: sk.ClassicSparseAutoencoder, means: dict[str, Tensor], errors: dict[str, float]) -> None:
    """What each latent writes, and how often latents are on."""
    figure, (filters, histogram) = plt.subplots(1, 2, figsize=(9, 4.3), width_ratios=(1.05, 1))
    written = model.decoder[0].weight.detach().T
    order = written.norm(dim=1).argsort(descending=True)
    written = written[order] / written[order].abs().amax(1, keepdim=True) / 2 + 0.5
    filters.imshow(tile(written, 8), cmap="RdBu_r", vmin=0, vmax=1)
    filters.set_axis_off()
    filters.set_title(f"What the {len(written)} latents write (KL)")
    bins = np.geomspace(1e-3, 1, 40)
    for (name, values), colour in zip(means.items(), (BLUE, ORANGE), strict=True):
        label = f"{name}: unexplained variance {errors[name]:.2f}"
        histogram.hist(values.clamp(1e-3, 1).numpy(), bins=bins, color=colour, alpha=0.7, label=label)
    histogram.axvline(RHO, color=RED, linewidth=1)
    histogram.annotate("$\\rho$", (RHO, histogram.get_ylim()[1]), xytext=(3, -8), textcoords="offset points", color=RED)
    histogram.set_xscale("log")
    histogram.set_xlabel("mean activation of a latent")
    histogram.set_ylabel("latents", color=GREY)
    histogram.legend(loc="upper left", fontsize=8)
    histogram.set_title("The KL sets how often each is on")
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
