"""From an image of any mode and size to a model's input, with a record of which part of it the model saw."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from saekit.errors import InputError, require

Box = tuple[float, float, float, float]

MAX_ASPECT = 100


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The numbers of a checkpoint's image processor."""

    size: int
    """Side of the model's square input, pixels."""
    resize_to: int
    """Length of the shorter side (or of both, with `squash`) before the centre crop to `size`, pixels."""
    squash: bool
    """Resize both sides to `resize_to`, whatever the aspect ratio."""
    resample: int
    """Pillow's number of the interpolation, e.g. 3 for bicubic."""
    mean: tuple[float, ...]
    """Subtracted per channel, after scaling pixels to 0..1."""
    std: tuple[float, ...]
    """Divided by per channel."""

    def resized(self, size: int | None) -> "Preprocessing":
        """The same for an input of another size, showing the same part of the image."""
        if size is None or size == self.size:
            return self
        scaled = {"size": size, "resize_to": round(self.resize_to * size / self.size)}
        return Preprocessing(**{**self.__dict__, **scaled})

    def apply(self, image: Any) -> tuple[Float32[np.ndarray, "channel size size"], Box]:
        """The model's input for an upright RGB Pillow image, and the box of the original (pixels) that it shows.

        Resizes to whole pixels, as the checkpoints' own processors do, then crops; the box accounts for that rounding.
        Raises `InputError` for an image so long that resizing it whole would take the machine's memory.
        """
        width, height = image.size
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise InputError(f"one side over {MAX_ASPECT} times the other")
        if self.squash:
            resized = (self.resize_to, self.resize_to)
        elif width <= height:
            resized = (self.resize_to, int(self.resize_to * height / width))
        else:
            resized = (int(self.resize_to * width / height), self.resize_to)
        left, top = (resized[0] - self.size) // 2, (resized[1] - self.size) // 2
        window = (left, top, left + self.size, top + self.size)
        levels = np.asarray(image.resize(resized, self.resample).crop(window))
        # A table of the 256 levels gives the same floats as the arithmetic on every pixel, several times faster.
        table = np.arange(256, dtype=np.float32)[:, None] / 255
        table = (table - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        pixels = np.empty((3, self.size, self.size), dtype=np.float32)
        for channel in range(3):
            np.take(table[:, channel], levels[:, :, channel], out=pixels[channel], mode="clip")
        per_x, per_y = width / resized[0], height / resized[1]
        box = (window[0] * per_x, window[1] * per_y, window[2] * per_x, window[3] * per_y)
        return pixels, box


def upright_rgb(image: Any) -> Any:
    """`image` turned as its EXIF says, in RGB; what is transparent becomes white and 16-bit grey is scaled to 8 bits.

    Raises `InputError` for images of 32 bits per pixel, whose range nothing tells.
    """
    pil = require("PIL.Image", "vision")
    image = require("PIL.ImageOps", "vision").exif_transpose(image)
    if image.mode in ("I", "F"):
        raise InputError(f"image of mode {image.mode!r} (32 bits), whose range is unknown")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image, dtype=np.float32) * (255 / 65535)
        return pil.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pil.new("RGBA", image.size, "white")
        return pil.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def thumbnail(image: Any, size: int) -> bytes:
    """WebP of a whole upright RGB image, its longest side at most `size` pixels."""
    scale = size / max(image.size)
    small = image
    if scale < 1:
        bilinear = require("PIL.Image", "vision").Resampling.BILINEAR
        small = image.resize([max(1, round(side * scale)) for side in image.size], bilinear)
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=80, method=1)
    return file.getvalue()
