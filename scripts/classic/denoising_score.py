"""A denoising autoencoder estimates the score of the noisy density.

Command   python scripts/classic/denoising_score.py
Data      Samples of a mixture of three Gaussians in the plane.
Claim     With Gaussian noise of size sigma, (g(f(x)) - x) / sigma^2 is the gradient of the logarithm of the density of
          the *noisy* data, for every sigma and not only small ones. The noisy density is a mixture too, so that its
          score is known; that of the clean density is missed by more the larger sigma is. Vincent 2011; Alain and
          Bengio 2014; Miyasawa 1961.
"""

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREY, ORANGE, Demo, start
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import saekit as sk

MEANS = torch.tensor([[-1.3, -0.8], [1.3, -0.6], [0.0, 1.2]])
SHARES = torch.tensor([0.4, 0.35, 0.25])
SPREAD = 0.4
SIGMAS = (0.1, 0.3, 0.5)


def density(sigma: float) -> MixtureSameFamily:
    """Of the data with Gaussian noise of size `sigma`."""
    width = (SPREAD**2 + sigma**2) ** 0.5
    return MixtureSameFamily(Categorical(SHARES), Independent(Normal(MEANS, torch.full_like(MEANS, width)), 1))


def true_score(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gradient of the logarithm of `density(sigma)`."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(density(sigma).log_prob(x).sum(), x)
    return gradient


def main(demo: Demo) -> None:
    """Train one model per sigma on the same batches; compare where noisy points fall."""
    models = [
        sk.DenoisingAutoencoder(
            sk.DenoisingAutoencoderConfig(
                d_in=2, d_latent=96, network=sk.Mlp(hidden=(96,)), corruption=sk.GaussianNoise(sigma=sigma)
            )
        )
        for sigma in SIGMAS
    ]
    n_rows = demo.pick(4_000_000, 4000)
    data = density(0.0).sample(torch.Size([demo.pick(1_000_000, 4000)]))
    rows = sk.ShuffledRows(data, 1000, n_epochs=n_rows / len(data))
    sk.fit(models, rows, sk.FitConfig(lr=3e-3, lr_decay_fraction=0.8, progress=False))

    errors, errors_to_clean = [], []
    for model, sigma in zip(models, SIGMAS, strict=True):
        noisy = density(sigma).sample(torch.Size([20_000]))
        with torch.no_grad():
            found = model.score(noisy)
        for target, kept in ((sigma, errors), (0.0, errors_to_clean)):
            truth = true_score(noisy, target)
            kept.append(float((found - truth).square().sum() / truth.square().sum()))
    for sigma, error, to_clean in zip(SIGMAS, errors, errors_to_clean, strict=True):
        demo.row(
            f"relative squared error of the score of the noisy density, sigma {sigma}",
            error,
            "< 0.05",
            "the mixture's exact score (Vincent 2011; Miyasawa 1961)",
            error < 0.05,
        )
        demo.row(
            f"the same against the score of the clean density, sigma {sigma}",
            to_clean,
            "larger",
            "the same run: the identity is with the noisy density",
            to_clean > error,
        )
    draw(demo, models[1], SIGMAS[1], errors, errors_to_clean)


def draw(
    demo: Demo, model: sk.DenoisingAutoencoder, sigma: float, errors: list[float], errors_to_clean: list[float]
) -> None:
    """Learnt arrows over exact ones on the density's contours; errors by size of the noise."""
    figure, (field, bars) = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=(1.6, 1))
    fine = torch.stack(
        torch.meshgrid(torch.linspace(-2.8, 2.8, 120), torch.linspace(-2.4, 2.8, 120), indexing="xy"), -1
    )
    log_p = density(sigma).log_prob(fine)
    field.contourf(*fine.unbind(-1), log_p.exp(), levels=12, cmap="Greys", alpha=0.6)
    x = torch.stack(torch.meshgrid(torch.linspace(-2.7, 2.7, 18), torch.linspace(-2.3, 2.7, 17), indexing="xy"), -1)
    x = x.reshape(-1, 2)
    x = x[density(sigma).log_prob(x) > -7]
    with torch.no_grad():
        found = model.score(x)
    for arrows, colour, label, width in (
        (true_score(x, sigma), ORANGE, "exact", 0.008),
        (found, BLUE, "(g(f(x)) - x) / $\\sigma^2$", 0.0035),
    ):
        field.quiver(*x.T, *arrows.T, color=colour, label=label, angles="xy", scale=110, width=width)
    field.set_title(f"Score of a mixture of three Gaussians, $\\sigma$ = {sigma}")
    field.legend(loc="upper right")
    field.set_aspect("equal")
    field.set_axis_off()
    places = torch.arange(len(SIGMAS))
    bars.bar(places - 0.2, errors, 0.4, color=BLUE, label="noisy density: what is learnt")
    bars.bar(places + 0.2, errors_to_clean, 0.4, color=GREY, label="clean density")
    bars.axhline(0.05, color="black", linewidth=0.8, linestyle=":")
    bars.set_yscale("log")
    bars.set_xticks(places, [str(sigma) for sigma in SIGMAS])
    bars.set_xlabel("noise $\\sigma$")
    bars.set_title("Relative squared error, against the score of")
    bars.legend()
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
