"""What a person can add when a file leaves it out."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Facts about a foreign autoencoder that its files do not hold."""

    k: int | None = None
    """Latents kept per row, for TopK formats that store weights alone."""
    threshold: float | None = None
    """The threshold of a BatchTopK whose files lack it."""
    input_scale: float | None = None
    """What activations were multiplied by in training, for files that say that they were and not by how much."""
