"""What an activation row came from: examples, their tokens and the layout of tokens in an example. NumPy only."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from saekit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Which positions of a model's token sequence are what.

    A sequence is `prefix` tokens (in order, by name) followed by content tokens. A patch is a content token of an
    image; a text window's prefix is the beginning-of-text token that saekit puts in front. Register tokens are prefix.
    """

    content: str
    """`"token"` (text) or `"patch"` (image)."""
    prefix: tuple[str, ...] = ()
    """Names of the tokens before the content, e.g. `("bos",)`, `("cls",)`, `("cls", "register_0", "register_1")`."""

    def __post_init__(self) -> None:
        if self.content not in ("token", "patch"):
            raise ConfigError(f"TokenLayout.content={self.content!r}; it is 'token' or 'patch'.")

    @property
    def n_prefix(self) -> int:
        return len(self.prefix)


@dataclass(frozen=True, kw_only=True)
class ImageGeometry:
    """Where the model looked in an image; enough to draw a patch on the original."""

    width: int
    """Width of the original, upright image in pixels."""
    height: int
    """Height of the original, upright image in pixels."""
    crop: tuple[float, float, float, float]
    """Left, top, right, bottom of the part the model saw, in pixels of the original."""
    grid: tuple[int, int]
    """Rows and columns of patches that tile the crop; content token i is at row i // columns, column i % columns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One input of the model: a window of one document's tokens, or one image."""

    document: str
    """Id of the document (windows of one text share it) or of the image, e.g. its path below the source folder."""
    kept: Int[np.ndarray, " n_kept"]
    """Positions (int32, ascending, in the model's token sequence, prefix included) whose activations are stored."""
    label: str | None = None
    """Class of the document or image, where the source has one."""
    caption: str | None = None
    """A line about the image, where the source has one."""
    token_ids: Int[np.ndarray, " n_tokens"] | None = None
    """Text: int32 ids of the whole window, prefix included."""
    start: int = 0
    """Text: index of the window's first content token in its document."""
    geometry: ImageGeometry | None = None
    """Image: where the model looked."""
    thumbnail: bytes = b""
    """Image: the whole upright original, small, as WebP."""
    pixels: np.ndarray | None = field(default=None, repr=False)
    """Image: the model's input, float32 [channel height width]; never stored."""

    @property
    def n_tokens(self) -> int:
        """Length of the model's token sequence as far as this example knows it (text only)."""
        if self.token_ids is None:
            raise ConfigError("n_tokens is known for text examples only; an image's length is the backbone's layout.")
        return len(self.token_ids)
