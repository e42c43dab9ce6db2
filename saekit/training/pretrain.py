"""`pretrain`: train a stack greedily, each block on the latents of the one below."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.autoencoders.base import Autoencoder
from saekit.errors import ConfigError
from saekit.training.config import FitConfig, FitResult
from saekit.training.fit import fit
from saekit.training.rows import ShuffledRows

_ENCODE_ROWS = 4096


def pretrain(
    stack: Sequence[Autoencoder],
    x: Float[Tensor, "n d_in"],
    *,
    n_epochs: int | float,
    batch_size: int = 100,
    config: FitConfig | Sequence[FitConfig] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> list[FitResult]:
    """Train the blocks of `stack` in place, from the lowest up; a block is not touched while those above it train.

    Each starts from its data's mean and sees the deterministic latents (probabilities, for an RBM) of the one below.
    `config` is one for all blocks or one for each. With `out`, each block's run is kept in `out/block-0` ..., and the
    same call after a kill goes on. Then `unroll(stack)` is the deep autoencoder to fine-tune with `fit`.

    Raises as `fit` does, and `ConfigError` when there are not as many configs as blocks.
    """
    each = [config or FitConfig()] * len(stack) if config is None or isinstance(config, FitConfig) else list(config)
    if len(each) != len(stack):
        raise ConfigError(f"{len(each)} configs for a stack of {len(stack)} blocks; give one for all or one for each.")
    results = []
    for i, (block, settings) in enumerate(zip(stack, each, strict=True)):
        weights = next(block.parameters())
        x = x.to(weights)
        if (start := getattr(block, "set_data_mean_", None)) is not None:
            start(x.mean(0))
        rows = ShuffledRows(x, batch_size, n_epochs, seed + i)
        results.append(fit([block], rows, settings, out=None if out is None else Path(out) / f"block-{i}"))
        if i < len(stack) - 1:
            x = _latents(block, x)
    return results


@torch.no_grad()
def _latents(block: Autoencoder, x: Tensor) -> Tensor:
    was_training = block.training
    block.eval()
    latents = torch.cat([block.encode(rows) for rows in x.split(_ENCODE_ROWS)])
    block.train(was_training)
    return latents
