"""Skip connections carry what a segmentation needs past the bottleneck.

Command   python scripts/classic/unet_segmentation.py
Data      Garments of Fashion-MNIST at random places on made-up backgrounds: uneven light, stripes, noise.
Claim     A U-Net finds the garment's mask; the same network without its skips finds it less exactly, and a smoothed
          threshold, at the smoothing and the level that suit training pictures best, least. Ronneberger et al. 2015.
"""

import math

import matplotlib.pyplot as plt
import torch
from common import GREY, Demo, fashion_mnist, start
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

import saekit as sk
from saekit.autoencoders import iou

SIDE = 48
SMOOTHINGS = (0.5, 1.0, 1.5, 2.0, 3.0)


def scenes(garments: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures `[n 1 SIDE SIDE]` and the masks of the garments in them."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)

    chosen = garments[torch.randint(len(garments), (n,), generator=generator)].view(n, 1, 28, 28)
    cloth, masks = torch.zeros(n, 1, SIDE, SIDE), torch.zeros(n, 1, SIDE, SIDE)
    corners = torch.randint(SIDE - 28 + 1, (n, 2), generator=generator).tolist()
    for i, (top, left) in enumerate(corners):
        cloth[i, :, top : top + 28, left : left + 28] = chosen[i]
        masks[i, :, top : top + 28, left : left + 28] = (chosen[i] > 0.1).float()
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    angle, period = uniform(0, math.pi), uniform(4, 12)
    stripes = torch.sin(2 * math.pi * (x * angle.cos() + y * angle.sin()) / period)
    coarse = torch.randn(n, 1, 5, 5, generator=generator)
    light = interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    behind = 0.35 + 0.15 * light + uniform(0.0, 0.2) * stripes
    front = 0.4 + 0.5 * cloth + 0.1 * light
    pictures = torch.where(masks > 0, front, behind)
    return pictures + 0.12 * torch.randn(pictures.shape, generator=generator), masks


def smooth(pictures: Tensor, sigma: float) -> Tensor:
    """Blurred by a Gaussian of `sigma` pixels."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None, None]
    padded = torch.nn.functional.pad(pictures, (reach,) * 4, mode="replicate")
    return conv2d(conv2d(padded, kernel), kernel.mT)


def best_threshold(pictures: Tensor, masks: Tensor) -> tuple[float, float]:
    """Smoothing and level with the highest mean IoU."""
    scores = {
        (sigma, level): float(iou((smooth(pictures, sigma) > level).float(), masks).mean())
        for sigma in SMOOTHINGS
        for level in torch.linspace(0.2, 0.8, 25).tolist()
    }
    return max(scores, key=lambda key: scores[key])


def train(garments: Tensor, skips: bool, n_steps: int) -> sk.UNet:
    """A U-Net on new scenes in every step."""
    model = sk.UNet(sk.UNetConfig(widths=(12, 24, 48), skips=skips))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=n_steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        optimizer.zero_grad()
        model.training_loss(*scenes(garments, 12, generator)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main(demo: Demo) -> None:
    """Train with and without skips, tune the threshold, compare on new scenes."""
    data = fashion_mnist(demo)
    models = {skips: train(data.train, skips, demo.pick(450, 3)) for skips in (True, False)}
    pictures, masks = scenes(data.test, demo.pick(1000, 20), torch.Generator().manual_seed(2))
    sigma, level = best_threshold(*scenes(data.train, demo.pick(500, 20), torch.Generator().manual_seed(3)))
    with torch.no_grad():
        guesses = {
            "with skips": torch.cat([models[True](part).sigmoid() for part in pictures.split(100)]),
            "without skips": torch.cat([models[False](part).sigmoid() for part in pictures.split(100)]),
            "smoothed threshold": (smooth(pictures, sigma) > level).float(),
        }
    scores = {name: float(iou(guess, masks).mean()) for name, guess in guesses.items()}
    source = "new scenes of garments never trained on, this run"
    with_skips, without, threshold = scores.values()
    demo.row("IoU with skips", with_skips, f"> {without:.3f}, without skips", source, with_skips > without)
    demo.row("IoU without skips", without, f"> {threshold:.3f}, the threshold's", source, without > threshold)
    demo.row(
        f"IoU of a threshold at {level:.2f} after smoothing by {sigma}",
        threshold,
        "lowest",
        source,
        threshold < without,
    )
    draw(demo, models[True], pictures, masks, guesses, scores)


def draw(
    demo: Demo, model: sk.UNet, pictures: Tensor, masks: Tensor, guesses: dict[str, Tensor], scores: dict[str, float]
) -> None:
    """Eight scenes with every mask, and maps inside the network for the first."""
    figure = plt.figure(figsize=(10, 4.6))
    left, right = figure.subfigures(1, 2, width_ratios=(2.4, 1))
    rows = {"picture": pictures, "mask": masks}
    rows |= {"\n".join((*name.split(), f"{scores[name]:.3f}")): guess for name, guess in guesses.items()}
    grid = left.subplots(len(rows), 8, gridspec_kw={"hspace": 0.02, "wspace": 0.02})
    for strip, (name, images) in zip(grid, rows.items(), strict=True):
        for axis, image in zip(strip, images, strict=False):
            axis.imshow(image[0].clamp(0, 1), vmin=0, vmax=1, cmap="gray")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        strip[0].set_ylabel(name, fontsize=7)
    left.suptitle("Masks of garments, and their mean IoU", weight="bold")
    with torch.no_grad():
        maps = {name: each[0] for name, each in model.maps(pictures[:1]).items() if name != "output"}
    for strip, (name, channels) in zip(right.subplots(len(maps), 3), maps.items(), strict=True):
        busiest = channels.flatten(1).std(1).argsort(descending=True)
        for axis, channel in zip(strip, busiest.tolist(), strict=False):
            axis.imshow(channels[channel], cmap="magma")
            axis.set_xticks([])
            axis.set_yticks([])
        strip[0].set_ylabel(f"{name}\n{channels.shape[-1]} px", fontsize=8, color=GREY)
    right.suptitle("Maps inside, first picture", weight="bold")
    demo.save_figure(figure)


if __name__ == "__main__":
    start(main)
