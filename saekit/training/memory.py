"""What to say when the device's memory does not hold a step: how much it would take, and what would fit."""

import os
from collections.abc import Sequence

import torch
from torch import nn

from saekit.errors import ConfigError

# Parameter, gradient and Adam's two moments, float32.
BYTES_PER_PARAMETER = 16
# A dense step holds about this many float32 values per row and latent at its peak: pre-activations, latents, their
# gradients and one temporary.
VALUES_PER_LATENT = 5
MIB = 2**20


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is a device or the CPU allocator refusing memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def out_of_memory(models: Sequence[nn.Module], n_rows: int, device: torch.device) -> ConfigError:
    """The error to raise for a step on `n_rows` rows that did not fit, with the numbers that would."""
    n_parameters = sum(p.numel() for model in models for p in model.parameters())
    total = device_memory(device)
    fixed = n_parameters * BYTES_PER_PARAMETER
    # The widest layer makes the largest matrix of a step; models take turns.
    widest = max((max(p.shape) for model in models for p in model.parameters() if p.ndim), default=1)
    per_row = widest * VALUES_PER_LATENT * 4
    message = (
        f"Out of memory on {device} ({total // MIB} MiB in all) with a batch of {n_rows} rows. Parameters, gradients "
        f"and Adam's moments take {fixed // MIB} MiB, a batch about {n_rows * per_row // MIB} MiB more. "
    )
    fits = rows_that_fit(total, fixed, per_row, n_rows)
    if fits:
        return ConfigError(message + f"batch_size={fits} would fit; precision='bf16' also takes less.")
    return ConfigError(
        message + f"No batch fits beside them: about 1/{2 + fixed // max(1, total)} of d_sae would, or fewer models."
    )


def refuse_wide_dictionary(d_in: int, d_sae: int, device: torch.device) -> None:
    """Raise `ConfigError` when a sparse autoencoder and its optimizer alone are larger than the device's memory."""
    total, per_latent = device_memory(device), (2 * d_in + 1) * BYTES_PER_PARAMETER
    if d_sae * per_latent > total:
        raise ConfigError(
            f"d_sae={d_sae} at d_in={d_in} takes {d_sae * per_latent // MIB} MiB for parameters, gradients and Adam's "
            f"moments; {device} has {total // MIB} MiB. About d_sae={int(0.8 * total) // per_latent} would fit."
        )


def rows_that_fit(total: int, fixed: int, per_row: int, n_rows: int) -> int:
    """The largest power of two of rows, below `n_rows`, in nine tenths of what `fixed` leaves of `total`; 0 if none."""
    left = int(0.9 * total) - fixed
    rows = min(left // per_row, n_rows - 1)
    return 1 << (rows.bit_length() - 1) if rows > 0 else 0


def device_memory(device: torch.device) -> int:
    """Bytes of memory of `device`; of the machine for anything but CUDA."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
