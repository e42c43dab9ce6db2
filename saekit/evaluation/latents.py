"""How an autoencoder uses its latents while it reconstructs: L0, L1, densities, silent and dead shares."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saekit.autoencoders import Autoencoder, SparseAutoencoder, SparseLatents
from saekit.errors import InputError
from saekit.metrics import FiringMeter, accumulator_dtype

# Above this share of active latents one dense product is cheaper than gathering their decoder rows.
_DENSE_ABOVE = 1 / 16


@dataclass(frozen=True, kw_only=True)
class LatentUse:
    """How often latents fire over a set of rows."""

    n_latents: int
    l0: float
    """Mean number of active latents per row."""
    l1: float
    """Mean sum of their absolute activations per row."""
    silent_share: float
    """Share of latents that fired on no row measured here: an upper bound on what is dead, loose for few rows."""
    dead_share: float | None
    """Share that fired for none of the last `dead_after_tokens` tokens of training; None when training was shorter."""
    dense_share: float
    """Share of latents that fire on more than 10 % of the rows."""
    above_1_percent_share: float
    """Share of latents that fire on more than 1 % of the rows."""
    dense_mass: float
    """Share of all firings that are of latents above 10 %: what a few dense latents carry."""
    above_1_percent_mass: float
    """Share of all firings that are of latents above 1 %."""
    density_histogram: "DensityHistogram"
    """How many latents fire how often."""
    density: Float[np.ndarray, " n_latents"] = dataclasses.field(repr=False)
    """Share of rows on which each latent fires; not written to metrics.json."""


@dataclass(frozen=True, kw_only=True)
class DensityHistogram:
    """Latents by the logarithm of their density; those that never fired are `LatentUse.silent_share`."""

    log10_edges: tuple[float, ...]
    """Ascending edges of the bins: five to a power of ten, from one in 10^8 to every row."""
    counts: tuple[int, ...]
    """Latents in each bin."""

    @classmethod
    def of(cls, density: Float[np.ndarray, " n_latents"]) -> "DensityHistogram":
        edges = np.linspace(-8, 0, 41)
        logs = np.log10(density[density > 0]).clip(edges[0], edges[-1])
        return cls(log10_edges=tuple(edges.round(6).tolist()), counts=tuple(np.histogram(logs, bins=edges)[0].tolist()))


class CountingReconstruction:
    """An autoencoder as a function from rows to reconstructed rows that counts which latents fire on the way."""

    def __init__(self, sae: Autoencoder) -> None:
        self.sae = sae
        self._fired: FiringMeter | None = None
        self._absolute_sum = 0.0

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        sae = self.sae
        if isinstance(sae, SparseAutoencoder) and sae.sparsifier.active_above == 0:
            active = sae.encode_sparse(x)
            self._count(active.latents, active.values, len(x), sae.config.d_sae)
            return decode_active(sae, active, x)
        latents = sae.encode(x)
        active = _active(sae, latents)
        self._count(active.latents, active.values, len(x), latents.shape[1])
        return sae.decode_for(x, latents)

    def _count(self, latents: Tensor, values: Tensor, n_rows: int, n_latents: int) -> None:
        if self._fired is None:
            self._fired = FiringMeter(n_latents, latents.device)
        self._fired.update_sparse(latents, n_rows)
        self._absolute_sum += values.abs().sum(dtype=accumulator_dtype(values.device)).item()

    def use(self) -> LatentUse:
        """What was counted so far. Raises `InputError` before any row."""
        if self._fired is None or self._fired.n_rows == 0:
            raise InputError("No rows were reconstructed; there is nothing to say about the latents.")
        density = self._fired.density().cpu().numpy()
        return LatentUse(
            n_latents=len(density),
            l0=float(density.sum()),
            l1=self._absolute_sum / self._fired.n_rows,
            silent_share=float((density == 0).mean()),
            dead_share=_dead_share(self.sae),
            dense_share=float((density > 0.1).mean()),
            above_1_percent_share=float((density > 0.01).mean()),
            dense_mass=_share_of(density, density > 0.1),
            above_1_percent_mass=_share_of(density, density > 0.01),
            density_histogram=DensityHistogram.of(density),
            density=density,
        )


@torch.no_grad()
def active_latents(sae: Autoencoder, x: Float[Tensor, "batch d_in"]) -> tuple[SparseLatents, int]:
    """The active latents of raw activations, of any autoencoder, and how many latents it has."""
    if isinstance(sae, SparseAutoencoder):
        return sae.encode_sparse(x), sae.config.d_sae
    latents = sae.encode(x)
    return _active(sae, latents), latents.shape[1]


def _active(sae: Autoencoder, latents: Float[Tensor, "batch n_latents"]) -> SparseLatents:
    is_active = latents > sae.sparsifier.active_above if isinstance(sae, SparseAutoencoder) else latents != 0
    row_offsets = torch.zeros(len(latents) + 1, dtype=torch.int64, device=latents.device)
    row_offsets[1:] = is_active.sum(1).cumsum(0)
    return SparseLatents(row_offsets, is_active.nonzero()[:, 1].int(), latents[is_active])


def decode_active(
    sae: SparseAutoencoder, active: SparseLatents, x: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch d_in"]:
    """`decode_for` of latents of `x` that are zero but for `active`, by whichever product is cheaper."""
    n_rows = len(active.row_offsets) - 1
    if active.values.numel() > _DENSE_ABOVE * n_rows * sae.config.d_sae:
        return sae.decode_for(x, active.to_dense(sae.config.d_sae))
    return sae.decode_sparse(active, x)


def _share_of(density: Float[np.ndarray, " n_latents"], chosen: np.ndarray) -> float:
    return float(density[chosen].sum() / density.sum()) if density.any() else math.nan


def _dead_share(sae: Autoencoder) -> float | None:
    if not isinstance(sae, SparseAutoencoder) or int(sae.n_tokens_seen) < sae.config.dead_after_tokens:
        return None
    return float(sae.is_dead.double().mean())
