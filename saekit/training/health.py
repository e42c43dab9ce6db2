"""`Health`: what is wrong with a sparse autoencoder, or with the activations it was trained on, at a glance."""

import dataclasses
import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.autoencoders.sparse import SparseAutoencoder
from saekit.errors import InputError
from saekit.files import Json
from saekit.metrics import FiringMeter, FVUMeter

DENSE = 0.01
"""A latent that fires on more than this share of tokens is dense."""
VERY_DENSE = 0.1
HIGH_NORM = 10.0
"""A token has a high norm when it is this many times the median one."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """Measures of a sparse autoencoder on a sample of activations. Shows itself as text, and in a notebook as a table.

    Shares are of latents or of tokens; norms of activations are about nothing, as they come out of the model.
    """

    n_tokens: int
    """Rows it was measured on."""
    d_sae: int
    l0: float
    """Active latents per token."""
    fvu: float
    dead: float
    """Share of latents silent for the last `dead_after_tokens` training tokens."""
    silent: float
    """Share of latents that fired on none of the rows."""
    dense: float
    """Share of latents that fired on more than 1 % of them."""
    very_dense: float
    """Share of latents that fired on more than 10 % of them."""
    density_median: float
    """Median share of rows on which a latent that fired at all did so."""
    norm_ratio: float
    """Mean norm of a reconstruction over that of its input, both about the input mean: below 1 is shrinkage."""
    decoder_norms: tuple[float, float, float]
    """Least, median and largest norm of W_dec's rows."""
    encoder_norms: tuple[float, float, float]
    """Least, median and largest norm of W_enc's columns."""
    encoder_decoder_cosine: float
    """Median cosine of a latent's encoder and decoder directions."""
    norm_median: float
    """Median norm of an activation."""
    norm_max: float
    high_norm: float
    """Share of tokens whose norm is above ten times the median."""
    high_norm_energy: float
    """Share of the squared distance to the input mean that these hold."""
    mean_over_std: float
    """Norm of the mean activation over the root mean squared distance to it."""

    @property
    def warnings(self) -> list[str]:
        """What to look into, worst first; empty when nothing stands out."""
        rules = [
            (
                self.high_norm_energy > 0.1,
                f"{self.high_norm:.3%} of tokens have norms above {HIGH_NORM:.0f} times the median and hold "
                f"{self.high_norm_energy:.0%} of the variance: leave them out when extracting.",
            ),
            (
                self.silent > 0.2,
                f"{self.silent:.0%} of latents fired on no token: AuxK, resampling or start_from_data.",
            ),
            (
                self.very_dense * self.d_sae > 0.25 * self.l0,
                f"{self.very_dense * self.d_sae:.0f} latents fire on more than {VERY_DENSE:.0%} of tokens.",
            ),
            (
                self.norm_ratio < 0.8,
                f"Reconstructions have {self.norm_ratio:.2f} of the norm of their input: shrinkage.",
            ),
            (not math.isfinite(self.fvu) or self.fvu > 1, f"FVU is {self.fvu:.3g}: worse than the mean activation."),
        ]
        return [message for applies, message in rules if applies]

    def to_json(self) -> Json:
        """The numbers and the warnings."""
        return {**dataclasses.asdict(self), "warnings": self.warnings}

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self._rows()]
        return "\n".join([*lines, *(f"Look: {warning}" for warning in self.warnings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(n)}</th><td>{v}</td></tr>" for n, v in self._rows()
        )
        notes = "".join(f"<li>{html.escape(warning)}</li>" for warning in self.warnings)
        return f"<table>{rows}</table>" + (f"<ul>{notes}</ul>" if notes else "")

    def _rows(self) -> list[tuple[str, str]]:
        low, middle, high = self.decoder_norms
        return [
            (
                "code",
                f"L0 {self.l0:.1f}, FVU {self.fvu:.4f} on {self.n_tokens:,} tokens, norms {self.norm_ratio:.2f} of x",
            ),
            (
                "latents",
                f"{self.dead:.1%} dead, {self.silent:.1%} silent here, {self.dense:.1%} on more than {DENSE:.0%} of "
                f"tokens, {self.very_dense:.1%} on more than {VERY_DENSE:.0%}",
            ),
            (
                "weights",
                f"decoder norms {low:.2f} to {high:.2f} (median {middle:.2f}), encoder {self.encoder_norms[0]:.2f} to "
                f"{self.encoder_norms[2]:.2f}, median cosine {self.encoder_decoder_cosine:.2f}",
            ),
            (
                "activations",
                f"norm {self.norm_median:.3g} (median) to {self.norm_max:.3g}, {self.high_norm:.3%} above "
                f"{HIGH_NORM:.0f} medians with {self.high_norm_energy:.1%} of the variance, mean/std "
                f"{self.mean_over_std:.2f}",
            ),
        ]


@torch.no_grad()
def measure_health(sae: SparseAutoencoder, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Health:
    """The health of `sae` on the rows of `batches`, raw activations. Raises `InputError` when there are none."""
    device, d_sae = sae.W_dec.device, sae.config.d_sae
    error, firing = FVUMeter(sae.config.d_in, device), FiringMeter(d_sae, device)
    norms, distances, total = [], [], torch.zeros(sae.config.d_in, dtype=torch.float64)
    in_norm = out_norm = 0.0
    for batch in batches:
        x = batch.to(device, sae.W_dec.dtype)
        active = sae.encode_sparse(x)
        x_hat = sae.decode_sparse(active, x) if sae.sparsifier.active_above == 0 else sae(x)
        error.update(x, x_hat)
        firing.update_sparse(active.latents, len(x))
        norms.append(x.norm(dim=1).cpu())
        distances.append((x - sae.input_mean).square().sum(1).double().cpu())
        total += x.sum(0).double().cpu()
        in_norm += float((x - sae.input_mean).norm(dim=1).sum())
        out_norm += float((x_hat - sae.input_mean).norm(dim=1).sum())
    if error.n_rows == 0:
        raise InputError("There are no rows to measure an autoencoder on.")
    size, distance = torch.cat(norms), torch.cat(distances)
    is_high = size > HIGH_NORM * size.median()
    density = firing.density().double().cpu()
    fired = density[density > 0]
    mean = total / error.n_rows
    offset = (mean - sae.input_mean.double().cpu()).square().sum()
    spread = (distance.mean() - offset).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    W_enc_T, W_dec = sae.W_enc_T, sae.W_dec
    return Health(
        n_tokens=error.n_rows,
        d_sae=d_sae,
        l0=float(firing.l0()),
        fvu=float(error.value()),
        dead=float(sae.is_dead.double().mean()),
        silent=float((density == 0).double().mean()),
        dense=float((density > DENSE).double().mean()),
        very_dense=float((density > VERY_DENSE).double().mean()),
        density_median=float(fired.median()) if len(fired) else 0.0,
        norm_ratio=out_norm / max(in_norm, 1e-30),
        decoder_norms=_spread(W_dec.norm(dim=1)),
        encoder_norms=_spread(W_enc_T.norm(dim=1)),
        encoder_decoder_cosine=float(torch.cosine_similarity(W_enc_T, W_dec, dim=1).median()),
        norm_median=float(size.median()),
        norm_max=float(size.max()),
        high_norm=float(is_high.double().mean()),
        high_norm_energy=float(distance[is_high].sum() / distance.sum().clamp_min(torch.finfo(torch.float64).tiny)),
        mean_over_std=float(mean.norm() / spread),
    )


def _spread(values: Tensor) -> tuple[float, float, float]:
    return float(values.min()), float(values.median()), float(values.max())
