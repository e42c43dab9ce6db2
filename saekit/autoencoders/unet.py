"""`UNet`: an encoder-decoder for images whose levels are joined by skip connections (Ronneberger et al. 2015).

It stands beside the autoencoders and is none of them: with skips there is no code that all of the input passes through,
so trained to reproduce its input it learns to copy. It learns maps from images to images: masks, classes, clean images.
Ronneberger et al. 2015 is arXiv:1505.04597; the Dice term is that of Milletari et al. 2016 (arXiv:1606.04797).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate, pad

from saekit.autoencoders.checkpoint import check_tensors, read_checkpoint, write_checkpoint
from saekit.errors import CheckpointError, ConfigError, InputError
from saekit.files import from_tagged, to_tagged


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of a U-Net and what its output is compared with."""

    in_channels: int = 1
    """Channels of the input image."""
    out_channels: int = 1
    """Channels of the output: masks, classes, or channels of the clean image."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels at each level, the full resolution first; every level halves the resolution of the one before."""
    skips: bool = True
    """Hand each level's maps across to the decoder. False is the ablation: all goes through the lowest level."""
    norm: Literal["group", "none"] = "group"
    """What follows a convolution. Group norm takes its statistics over the whole image: only without a norm is
    `tiled` equal to `forward`."""
    target: Literal["masks", "classes", "values"] = "masks"
    """What `training_loss` compares the output with: masks in 0..1 (cross-entropy and Dice on logits), one class
    number per pixel (cross-entropy), or values such as a clean image (squared error)."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} is not 1 or larger"
            for name in ("in_channels", "out_channels")
            if getattr(self, name) < 1
        ]
        if len(self.widths) < 2 or min(self.widths) < 1:
            problems.append(f"widths={self.widths} is not two or more numbers, each 1 or larger")
        if self.norm not in ("group", "none"):
            problems.append(f"norm={self.norm!r} is not 'group' or 'none'")
        if self.target not in ("masks", "classes", "values"):
            problems.append(f"target={self.target!r} is not 'masks', 'classes' or 'values'")
        if self.target == "classes" and self.out_channels == 1:
            problems.append("target='classes' with out_channels=1 has nothing to tell apart; use target='masks'")
        if problems:
            raise ConfigError(f"UNetConfig: {'; '.join(problems)}.")


class UNet(nn.Module):
    """Contracting path, expanding path, and skips between them. Takes images of any size and returns the same size."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.provenance: dict[str, Any] | None = None
        widths = config.widths
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            ins = (config.in_channels, *widths[:-1])
            self.down = nn.ModuleList(_Block(a, b, config.norm) for a, b in zip(ins, widths, strict=True))
            self.narrow = nn.ModuleList(nn.Conv2d(below, here, 3, padding=1) for here, below in pairwise(widths))
            self.up = nn.ModuleList(
                _Block(2 * width if config.skips else width, width, config.norm) for width in widths[:-1]
            )
            self.head = nn.Conv2d(widths[0], config.out_channels, 1)

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch out_channel height width"]:
        """Logits for masks and classes, values otherwise. Sides that are no multiple of `stride` are padded within."""
        return self.maps(images)["output"]

    def maps(self, images: Float[Tensor, "batch channel height width"]) -> dict[str, Tensor]:
        """Every intermediate map by name, in order: `down.0` (full resolution) ... `up.0`, `output`.

        `[batch width height/2^level width/2^level]` at level `level`, with the padding still on but for `output`.
        """
        _check_images(images, self.config.in_channels)
        height, width = images.shape[-2:]
        x = pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        maps = {}
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            maps[f"down.{level}"] = x
        for level in reversed(range(len(self.up))):
            x = self.narrow[level](interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
            if self.config.skips:
                x = torch.cat([maps[f"down.{level}"], x], dim=1)
            x = self.up[level](x)
            maps[f"up.{level}"] = x
        maps["output"] = self.head(x)[..., :height, :width]
        return maps

    @property
    def stride(self) -> int:
        """Pixels of the input per pixel of the lowest level."""
        return int(2 ** (len(self.config.widths) - 1))

    @property
    def reach(self) -> int:
        """An output pixel does not depend on input pixels further away than this many, without a norm."""
        n_levels = len(self.config.widths)
        down = sum(2 * 2**level for level in range(n_levels))
        up = sum((2 + 3) * 2**level for level in range(n_levels - 1))  # upsampling, three convolutions
        return down + up + self.stride - 1

    def tiled(
        self, images: Float[Tensor, "batch channel height width"], tile: int = 256
    ) -> Float[Tensor, "batch out_channel height width"]:
        """`forward` a tile at a time, for images whose maps do not fit in memory.

        Tiles overlap by `reach`, so the result is that of the whole image, but for `norm="group"`, where every tile
        has statistics of its own. `tile` is the side of what one step adds, in pixels.
        """
        _check_images(images, self.config.in_channels)
        if tile < 1:
            raise ConfigError(f"tile={tile} is not 1 or larger.")
        margin = -(-self.reach // self.stride) * self.stride
        tile = -(-tile // self.stride) * self.stride
        height, width = images.shape[-2:]
        padded = pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        output = images.new_zeros(images.shape[0], self.config.out_channels, *padded.shape[-2:])
        for top in range(0, padded.shape[-2], tile):
            for left in range(0, padded.shape[-1], tile):
                y, x = max(0, top - margin), max(0, left - margin)
                part = self(padded[..., y : top + tile + margin, x : left + tile + margin])
                part = part[..., top - y : top - y + tile, left - x : left - x + tile]
                output[..., top : top + tile, left : left + tile] = part
        return output[..., :height, :width]

    def training_loss(
        self,
        images: Float[Tensor, "batch channel height width"],
        target: Tensor,
    ) -> Float[Tensor, ""]:
        """Mean over the batch of what `config.target` says: per pixel for masks and classes, summed for values.

        `target` is `[batch out_channel height width]`, for classes `[batch height width]` of whole numbers.
        Raises `InputError` for a target of another shape, masks outside 0..1 and classes that there are not.
        """
        output = self(images).to(images.dtype)
        _check_target(output, target, self.config)
        if self.config.target == "classes":
            return cross_entropy(output, target.long())
        if self.config.target == "values":
            return (output - target).square().sum((1, 2, 3)).mean()
        masks, guess = rearrange(target, "b c h w -> b c (h w)"), rearrange(output.sigmoid(), "b c h w -> b c (h w)")
        # One added on both sides, so that an image without any mask has a Dice score of 1 when none is found.
        dice = (2 * (masks * guess).sum(-1) + 1) / (masks.sum(-1) + guess.sum(-1) + 1)
        return binary_cross_entropy_with_logits(output, target) + (1 - dice).mean()

    def save(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> Path:
        """Write config and parameters to a directory, atomically, in the format of every checkpoint."""
        if provenance is not None:
            self.provenance = dict(provenance)
        return write_checkpoint(path, "UNet", to_tagged(self.config), self.state_dict(), self.provenance, kind="UNet")

    @classmethod
    def load(cls, path: str | Path) -> "UNet":
        """Read a checkpoint onto the CPU; raises `CheckpointError` when it is none, damaged, or of another kind."""
        meta, tensors = read_checkpoint(path, kind="UNet")
        try:
            model = cls(from_tagged(meta["config"], UNetConfig))
        except (TypeError, ValueError, AttributeError) as error:  # a ConfigError is a ValueError
            raise CheckpointError(f"The config in {Path(path) / 'meta.json'} makes no UNet: {error}") from None
        check_tensors(path, model.state_dict(), tensors)
        model.load_state_dict(tensors)
        model.provenance = meta.get("provenance")
        return model


class _Block(nn.Sequential):
    """Two 3x3 convolutions that keep the size."""

    def __init__(self, n_in: int, n_out: int, norm: str) -> None:
        layers: list[nn.Module] = []
        for before in (n_in, n_out):
            layers.append(nn.Conv2d(before, n_out, 3, padding=1))
            if norm == "group":
                layers.append(nn.GroupNorm(next(g for g in (8, 4, 2, 1) if n_out % g == 0), n_out))
            layers.append(nn.ReLU())
        super().__init__(*layers)


def iou(
    guess: Float[Tensor, "batch channel height width"], masks: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch channel"]:
    """Intersection over union of masks, `guess` and `masks` both cut at 0.5: 1 is perfect; 1 when both are empty."""
    a, b = guess > 0.5, masks > 0.5
    union = (a | b).sum((-2, -1))
    return torch.where(union == 0, 1.0, (a & b).sum((-2, -1)) / union.clamp(min=1))


def _check_images(images: Tensor, n_channels: int) -> None:
    if images.shape[1] != n_channels:
        raise InputError(f"The images have {images.shape[1]} channels; this U-Net takes in_channels={n_channels}.")
    if 0 in images.shape:
        raise InputError(f"The images have shape {list(images.shape)}; there is nothing in them.")


def _check_target(output: Tensor, target: Tensor, config: UNetConfig) -> None:
    expected = output[:, 0].shape if config.target == "classes" else output.shape
    if target.shape != expected:
        raise InputError(f"The target has shape {list(target.shape)}, expected {list(expected)} ({config.target}).")
    low, high = target.aminmax()
    if not (torch.isfinite(low) & torch.isfinite(high)):
        raise InputError("The target holds NaN or infinite values.")
    limit = {"masks": 1, "classes": config.out_channels - 1}.get(config.target)
    if limit is not None and (low < 0 or high > limit):
        raise InputError(f"{config.target} are within 0..{limit}; these run from {low:.4g} to {high:.4g}.")
