"""Which tokens of a text or an image become activation rows."""

from dataclasses import dataclass

from saekit.errors import ConfigError

IMAGE_TOKENS = ("cls", "register", "patch")


@dataclass(frozen=True, kw_only=True)
class TextWindows:
    """How documents become windows of tokens, and which of those are kept."""

    context_size: int = 256
    """Tokens of a window, prefix included; a longer document becomes several windows."""
    pack: bool = False
    """Put several short windows in one row of a batch; the activations are the same."""
    prefix: str = "auto"
    """The token in front of every window: "auto" (the model's own), "none", or a token such as "<|endoftext|>"."""
    drop_first: int = 1
    """Positions left out at the front of every window, prefix included: they are attention sinks in most models."""
    drop_special: bool = True
    """Leave out the tokenizer's special tokens wherever they stand."""
    min_tokens: int = 8
    """Windows with fewer tokens of their document are left out."""

    def __post_init__(self) -> None:
        if self.context_size < 2:
            raise ConfigError(f"TextWindows.context_size={self.context_size}; it is at least 2.")
        if not 0 <= self.drop_first < self.context_size:
            raise ConfigError(
                f"TextWindows.drop_first={self.drop_first}; it is from 0 to context_size - 1 = {self.context_size - 1}."
            )
        if self.min_tokens < 1:
            raise ConfigError(f"TextWindows.min_tokens={self.min_tokens}; it is at least 1.")
        if not self.prefix:
            raise ConfigError("TextWindows.prefix=''; write 'none' for no prefix.")


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """How images are presented to the model, and which tokens are kept."""

    keep: tuple[str, ...] = ("patch",)
    """Kinds of token that become rows: "cls", "register", "patch"."""
    image_size: int | None = None
    """Side of the model's square input in pixels; None is what the checkpoint was made for."""
    thumbnail_size: int = 256
    """Longest side in pixels of the stored picture; smaller originals are not enlarged."""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.keep if kind not in IMAGE_TOKENS]
        if unknown or not self.keep:
            raise ConfigError(f"ImageTokens.keep={self.keep}; choose one or more of {IMAGE_TOKENS}.")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"ImageTokens.image_size={self.image_size}; it is a positive number of pixels.")
        if self.thumbnail_size < 16:
            raise ConfigError(f"ImageTokens.thumbnail_size={self.thumbnail_size}; it is at least 16.")
