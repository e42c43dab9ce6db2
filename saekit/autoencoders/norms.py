"""Norms of a decoder's weights, held so that a penalty on the code cannot be undone by a larger decoder."""

import torch
from torch import nn

from saekit.autoencoders.modules import TransposedLinear
from saekit.errors import ConfigError

# Of each weight, the dimensions over which one input unit's outgoing connections run.
_OUTGOING = {nn.Linear: (0,), TransposedLinear: (0,), nn.Conv2d: (0, 2, 3), nn.ConvTranspose2d: (1, 2, 3)}


@torch.no_grad()
def limit_outgoing_norms_(decoder: nn.Module) -> None:
    """Shorten every input unit's outgoing weights to norm 1 in every layer of `decoder`, where they are longer.

    Without this f / c and c g have the reconstruction of f and g and a smaller penalty. Raises `ConfigError` when
    `decoder` has none of the layers that are known.
    """
    n_limited = 0
    for layer in decoder.modules():
        if type(layer) in _OUTGOING:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            norms = torch.linalg.vector_norm(weight, dim=_OUTGOING[type(layer)], keepdim=True)
            weight.div_(norms.clamp(min=1.0))
            n_limited += 1
    if n_limited == 0:
        raise ConfigError(
            "The decoder has no Linear, Conv2d or ConvTranspose2d layer whose norms could be limited; without a limit "
            "it undoes the penalty by growing. Give one that has."
        )
