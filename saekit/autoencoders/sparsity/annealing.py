"""A k that falls from `k_start` to `k` at the beginning of a run."""

import torch
from torch import Tensor, nn

from saekit.autoencoders.sparsity.base import Rule


class AnnealedK(nn.Module):
    """The k of the moment: a buffer where it changes, so that a checkpoint of an unfinished run keeps it.

    k falls linearly over the first `fraction` of the run and stays at `k` (dictionary learning's and llamascopium's k
    annealing; a large k at first gives every latent a gradient).
    """

    k_now: Tensor
    """int64 `[]`; only where k is annealed."""

    def __init__(self, k: int, k_start: int | None, fraction: float) -> None:
        super().__init__()
        self._k, self._k_start, self._fraction = k, k_start, fraction
        # Beside the buffer, because reading that would wait for a GPU in every step.
        self._current: int | None = k if k_start is None else None
        if k_start is not None:
            self.register_buffer("k_now", torch.tensor(k_start, dtype=torch.int64))

    @property
    def value(self) -> int:
        """Latents per row."""
        if self._current is None:
            self._current = int(self.k_now)
        return self._current

    def set_progress_(self, share: float) -> None:
        """The k for the step that starts when `share` of the run is over."""
        if self._k_start is None:
            return
        left = max(0.0, 1 - share / self._fraction)
        self._current = round(self._k + left * (self._k_start - self._k))
        self.k_now.fill_(self._current)

    def _load_from_state_dict(self, *arguments: object, **options: object) -> None:
        super()._load_from_state_dict(*arguments, **options)
        if self._k_start is not None:
            self._current = None


def rules(k: int, k_start: int | None, fraction: float) -> list[Rule]:
    """What the three settings of an annealed k must be."""
    return [
        ("k", k >= 1, "1 or larger"),
        ("k_start", k_start is None or k_start >= k, f"None or at least k={k}"),
        ("k_anneal_fraction", 0 < fraction <= 1, "in (0, 1]"),
    ]
