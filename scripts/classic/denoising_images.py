"""A denoising autoencoder cleans images better than any linear filter.

Command   python scripts/classic/denoising_images.py
Data      Fashion-MNIST: 60,000 pictures to train on, 10,000 to judge by.
Claim     Trained on pictures with Gaussian noise, with masked pixels, or with salt and pepper, and on nothing else, a
          denoising autoencoder brings the clean picture back: its PSNR is above that of the corrupted picture, of the
          projection on the best number of principal components, and of the best linear map from corrupted to clean,
          which has seen the same pairs. Squared error, cross-entropy, and a loss with emphasis on corrupted pixels are
          all used. Vincent et al. 2010.
"""

import math

import matplotlib.pyplot as plt
import torch
from common import BLUE, GREEN, GREY, ORANGE, Demo, fashion_mnist, start, tile
from torch import Tensor

import saekit as sk
from saekit.autoencoders import Corruption

CORRUPTIONS: dict[str, tuple[Corruption, dict[str, object]]] = {
    "Gaussian noise 0.3": (sk.GaussianNoise(sigma=0.3), {"likelihood": sk.SquaredError(link="sigmoid")}),
    "half of the pixels masked": (sk.Masking(share=0.5), {"likelihood": sk.Bernoulli()}),
    "salt and pepper 0.4": (
        sk.SaltAndPepper(share=0.4),
        {"likelihood": sk.SquaredError(link="sigmoid"), "emphasis": (1.0, 0.5)},
    ),
}


def psnr(x_hat: Tensor, x: Tensor) -> float:
    """Peak signal-to-noise ratio of all images together, in dB; the peak is 1."""
    return -10 * math.log10(float((x_hat - x).square().mean()))


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and axes, one per row, the largest variance first."""
    mean = x.mean(0)
    return mean, torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors.T.flip(0)


def best_pca(corrupted: Tensor, clean: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """The projection of `corrupted` on as many axes as serve it best, found with the help of `clean`."""
    results = [(corrupted - mean) @ axes[:k].T @ axes[:k] + mean for k in (5, 10, 20, 30, 40, 60, 80, 120, 200)]
    return max(results, key=lambda result: psnr(result, clean))


def linear_map(corrupted: Tensor, clean: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares from corrupted to clean rows: the best linear filter."""
    offset = corrupted.mean(0)
    centred = (corrupted - offset).double()
    gram = centred.T @ centred + 1e-3 * torch.eye(centred.shape[1], dtype=torch.float64)
    return offset, torch.linalg.solve(gram, centred.T @ (clean - mean).double()).float()


def main(demo: Demo) -> None:
    """Train the three side by side, then filter the same corrupted test pictures in every way."""
    data = fashion_mnist(demo)
    models = [
        sk.DenoisingAutoencoder(
            sk.DenoisingAutoencoderConfig(
                d_in=784, d_latent=256, network=sk.Mlp(hidden=(512,)), corruption=corruption, **settings
            )
        )
        for corruption, settings in CORRUPTIONS.values()
    ]
    for model in models:
        model.set_data_mean_(data.train.mean(0))
    rows = sk.ShuffledRows(data.train, 200, n_epochs=demo.pick(6.0, 1.0))
    sk.fit(models, rows, sk.FitConfig(lr=1e-3, lr_decay_fraction=0.7, progress=False))

    mean, axes = principal_axes(data.train)
    table, pictures = {}, []
    for (name, (corruption, _)), model in zip(CORRUPTIONS.items(), models, strict=True):
        model.eval()
        generator = torch.Generator().manual_seed(0)
        corrupted = corruption(data.test, generator).x
        offset, W = linear_map(corruption(data.train, generator).x, data.train, mean)
        with torch.no_grad():
            denoised = torch.cat([model.denoise(part) for part in corrupted.split(2000)])
        ways = {
            "corrupted": corrupted,
            "best PCA projection": best_pca(corrupted, data.test, mean, axes),
            "best linear map": (corrupted - offset) @ W + mean,
            "denoising autoencoder": denoised,
        }
        table[name] = {way: psnr(result, data.test) for way, result in ways.items()}
        pictures.append([data.test, *ways.values()])
        ours = table[name]["denoising autoencoder"]
        for way in list(ways)[:-1]:
            gain = ours - table[name][way]
            demo.row(
                f"PSNR gain in dB over the {way}{' picture' if way == 'corrupted' else ''}, {name}",
                gain,
                f"> 0 (that has {table[name][way]:.2f} dB)",
                "the same test pictures, this run",
                gain > 0,
            )
    draw(demo, table, pictures)


def draw(demo: Demo, table: dict[str, dict[str, float]], pictures: list[list[Tensor]]) -> None:
    """Eight test pictures in every state, and the decibels."""
    figure = plt.figure(figsize=(10, 3.7))
    left, right = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    axes = left.subplots(1, 3)
    labels = ["clean", "corrupted", "PCA", "linear", "denoised"]
    for axis, name, columns in zip(axes, table, pictures, strict=True):
        rows = torch.stack([column[2:8] for column in columns], dim=1).flatten(0, 1)
        axis.imshow(tile(rows, len(labels)), vmin=0, vmax=1)
        axis.set_title(name.replace(" of the pixels", ""), fontsize=9)
        axis.set_xticks([14 + 29 * i for i in range(len(labels))], labels, fontsize=6, rotation=40)
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    axis = right.subplots()
    for i, (way, colour) in enumerate(zip(table[next(iter(table))], (GREY, ORANGE, BLUE, GREEN), strict=True)):
        heights = [ways[way] for ways in table.values()]
        bars = axis.bar([x + 0.2 * i for x in range(len(table))], heights, 0.19, color=colour, label=way)
        axis.bar_label(bars, fmt="%.1f", fontsize=6)
    axis.set_xticks([x + 0.3 for x in range(len(table))], ["Gaussian", "masked", "salt, pepper"])
    axis.set_ylim(0, 30)
    axis.set_title("PSNR, dB")
    axis.legend(fontsize=7, loc="upper left")
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
