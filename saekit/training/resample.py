"""Resampling: dead latents start again in the directions of rows that the autoencoder reconstructs badly.

Bricken et al. 2023 (Towards Monosemanticity, appendix): at a few moments of a run, rows are drawn with a probability
proportional to their squared loss; each dead latent gets one as its decoder row, a weak encoder in the same direction,
no bias, and an optimizer without memory of it.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saekit.autoencoders.initial import resample_latents_
from saekit.autoencoders.sparse import SparseAutoencoder
from saekit.metrics import accumulator_dtype

MOST_ROWS = 8192
"""Rows that are kept as candidates; at most so many latents are resampled at a time."""

logger = logging.getLogger(__name__)


class DeadResampler:
    """Collects candidate rows before each moment of resampling, and resamples at it.

    Rows are kept by weighted reservoir sampling (Efraimidis and Spirakis 2006): without repeats, in one pass, with the
    same result wherever a run was interrupted.
    """

    def __init__(self, model: SparseAutoencoder, n_tokens: int, shares: Sequence[float], window: int) -> None:
        self._model = model
        self._moments = sorted(share * n_tokens for share in shares)
        self._window = window
        n_rows, like = min(model.config.d_sae, MOST_ROWS), model.W_dec
        self._rows = torch.zeros(n_rows, model.config.d_in, dtype=like.dtype, device=like.device)
        self._keys = torch.full((n_rows,), -torch.inf, dtype=accumulator_dtype(like.device), device=like.device)

    @torch.no_grad()
    def after_step_(
        self,
        n_seen: int,
        x: Float[Tensor, "batch d_in"],
        x_hat: Float[Tensor, "batch d_in"],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Look at the batch that was trained on after `n_seen` tokens; resample when a moment lies in it."""
        n_after = n_seen + len(x)
        next_moment = next((moment for moment in self._moments if moment > n_seen), None)
        if next_moment is None or n_after <= next_moment - self._window:
            return
        self._collect(n_seen, x, x_hat)
        if n_after >= next_moment:
            n_dead = int(self._model.is_dead.sum())
            n = self._resample_(optimizer)
            logger.info("Resampled %d of %d dead latents after %d tokens.", n, n_dead, n_after)
            self._keys.fill_(-torch.inf)

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Tensors from which `load_state` makes the same candidates again; none while there are none."""
        if not bool(self._keys.isfinite().any()):
            return {}
        return {f"{prefix}.rows": self._rows, f"{prefix}.keys": self._keys}

    def load_state(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state(prefix)` as it was saved."""
        if f"{prefix}.keys" in tensors:
            self._rows.copy_(tensors[f"{prefix}.rows"])
            self._keys.copy_(tensors[f"{prefix}.keys"])

    def _collect(self, n_seen: int, x: Tensor, x_hat: Tensor) -> None:
        losses = (x - x_hat).square().sum(1).to(self._keys)
        # Drawn on the CPU, so that the same rows are drawn on every device; the copy waits for nothing.
        uniform = torch.rand(len(x), generator=torch.Generator().manual_seed(n_seen), dtype=self._keys.dtype)
        logs = uniform.log().to(losses.device, non_blocking=True)
        keys = torch.cat([self._keys, logs / losses.square().clamp_min(torch.finfo(losses.dtype).tiny)])
        kept = keys.topk(len(self._keys)).indices
        self._rows = torch.cat([self._rows, x.to(self._rows)])[kept]
        self._keys = keys[kept]

    def _resample_(self, optimizer: torch.optim.Optimizer) -> int:
        model = self._model
        dead = model.is_dead.nonzero().view(-1)[: int(self._keys.isfinite().sum())]
        if len(dead) == 0:
            return 0
        resample_latents_(model, dead, self._rows[: len(dead)])
        which = torch.zeros(model.config.d_sae, dtype=torch.bool, device=dead.device)
        which[dead] = True
        forget_latents_(model, optimizer, which)
        return len(dead)


def forget_latents_(model: SparseAutoencoder, optimizer: torch.optim.Optimizer, which: Bool[Tensor, " d_sae"]) -> None:
    """Zero what the optimizer remembers of these latents' weights, biases and other parameters of their own."""
    for parameter in model.latent_parameters():
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[which] = 0
