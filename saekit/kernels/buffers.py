"""Memory of weight gradients that is used again from step to step.

A fresh 75 MB tensor costs the CPU more in page faults than the sparse products that fill it.
"""

import torch
from torch import Tensor

_USE_COUNT = getattr(torch._C, "_storage_Use_Count", None)


class GradientBuffers:
    """Keeps an alias of gradients that are done with, and hands their memory out once nobody else refers to it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], list[Tensor]] = {}

    def keep(self, gradient: Tensor | None) -> None:
        """Remember a gradient that the optimizer has used; it stays valid as long as anyone else holds it."""
        if gradient is not None and _USE_COUNT is not None and gradient.device.type == "cpu":
            kept = self._kept.setdefault(_layout(gradient), [])
            if all(gradient.data_ptr() != other.data_ptr() for other in kept):
                kept.append(gradient.detach())

    def take(self, like: Tensor) -> Tensor:
        """An uninitialised tensor of the shape, strides and type of `like`."""
        kept = self._kept.get(_layout(like), [])
        for place, tensor in enumerate(kept):
            if _is_only_reference(tensor):
                return kept.pop(place)
        # Those still in use are somebody's to keep; holding on to them would pile up memory.
        kept.clear()
        return torch.empty_like(like)

    def __deepcopy__(self, memo: dict[int, object]) -> "GradientBuffers":
        return GradientBuffers()

    def __getstate__(self) -> dict[str, object]:
        return {"_kept": {}}


def _is_only_reference(tensor: Tensor) -> bool:
    storage = tensor.untyped_storage()
    # One for the tensor, one for the `storage` object of this line.
    return _USE_COUNT is not None and _USE_COUNT(storage._cdata) == 2


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device.type
