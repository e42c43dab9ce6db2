"""What happens to the parameters in a step: Adam, its learning-rate and sparsity schedules, and the model's hooks."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from saekit.autoencoders.base import Autoencoder
from saekit.autoencoders.sparse import SparseAutoencoder
from saekit.errors import ConfigError
from saekit.kernels import adam_step_, bf16_selection, cpu_has_bf16

_logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "bf16_select")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Multipliers in 0..1 as functions of training tokens, so that they do not depend on the batch size.

    Both are taken at the middle of a batch: neither is ever exactly 0.
    """

    n_tokens: int
    """Tokens of the whole run."""
    lr_warmup_fraction: float
    """The learning rate rises linearly from 0 over this share of the run."""
    lr_decay_fraction: float
    """... and falls linearly to 0 over this last share."""
    sparsity_warmup_fraction: float
    """The sparsity coefficient rises linearly from 0 over this share of the run."""

    def lr(self, n_seen: int, n_batch: int) -> float:
        """Multiplier of the learning rate for a batch of `n_batch` tokens after `n_seen` tokens."""
        share = (n_seen + n_batch / 2) / self.n_tokens
        return min(1.0, _ramp(share, self.lr_warmup_fraction), _ramp(1 - share, self.lr_decay_fraction))

    def sparsity(self, n_seen: int, n_batch: int) -> float:
        """Multiplier of the sparsity coefficient for the same batch."""
        return min(1.0, _ramp((n_seen + n_batch / 2) / self.n_tokens, self.sparsity_warmup_fraction))


def resolve_lr(lr: float | Literal["auto"], model: Autoencoder) -> float:
    """The peak learning rate that `"auto"` means for `model` (see `FitConfig.lr`). A number is kept."""
    if lr != "auto":
        return lr
    if not isinstance(model, SparseAutoencoder):
        return 1e-3
    return 2e-4 / math.sqrt(model.config.d_sae / 2**14)


def make_optimizer(model: Autoencoder, lr: float, betas: tuple[float, float], eps: float = 1e-8) -> torch.optim.Adam:
    """Adam over the parameters of `model`, in its fused form where the device has one (CUDA and CPU do)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError(f"{type(model).__name__} has no parameter that requires a gradient; there is nothing to fit.")
    scales: dict[int, float] = {}
    if isinstance(model, SparseAutoencoder):
        own = dict(model.sparsifier.named_parameters())
        scales = {id(own[name]): scale for name, scale in model.sparsifier.lr_scales().items()}
    groups = [
        {"params": [p for p in parameters if scales.get(id(p), 1.0) == scale], "lr": lr * scale, "lr_scale": scale}
        for scale in sorted({1.0, *scales.values()}, key=lambda scale: scale != 1)
    ]
    fused = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def take_step(model: Autoencoder, optimizer: torch.optim.Optimizer, lr: float, clip_grad_norm: float) -> None:
    """Apply the gradients that are there: project, clip, step, project back. Leaves no gradient behind.

    Projection comes before clipping, so that the part of the gradient which is thrown away does not shrink the rest.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    if (
        isinstance(model, SparseAutoencoder)
        and isinstance(optimizer, torch.optim.Adam)
        and adam_step_(optimizer, model.unit_rows, clip_grad_norm)
    ):
        model.finish_step_()
        optimizer.zero_grad(set_to_none=True)
        return
    model.project_gradients_()
    if clip_grad_norm > 0:
        nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.project_()


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that `"auto"` means on `device`: tf32 on CUDA, fp32 elsewhere. Others are kept."""
    if precision == "auto":
        return "tf32" if device.type == "cuda" else "fp32"
    if precision == "bf16_select":
        if device.type != "cpu":
            raise ConfigError(
                f"precision='bf16_select' exists on the CPU only and the model is on {device}; use 'bf16'."
            )
        if not cpu_has_bf16():
            _logger.warning("This CPU has no bf16 instructions: precision='bf16_select' is slower here than 'fp32'.")
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision='tf32' exists on CUDA only and the model is on {device}; use 'fp32' or 'bf16'.")
    return precision


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set torch's global switch for float32 matrix products (`"tf32"` or exact) and restore it on exit.

    Parameters, gradients and optimizer state stay float32 in every precision; `"bf16"` is autocast around the loss, and
    `"bf16_select"` finds active entries by a bf16 product, to the same result (see `kernels.bf16_selection`).
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with bf16_selection(precision == "bf16_select"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _ramp(share: float, fraction: float) -> float:
    return share / fraction if fraction > 0 else 1.0
