"""Imports Transformers and timm in a way that survives a torchvision whose compiled operators do not load.

The torchvision on PyPI is built for CUDA. Beside a CPU-only torch its operators cannot be loaded, and then
`import torchvision` fails; timm needs that import, and Transformers attempts it whenever torchvision is installed.
Declaring the two operators that torchvision's own import looks up is enough; saekit and both libraries use neither.
"""

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch

from saekit.errors import require

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_transformers(extra: str = "lm") -> Any:
    """The module `transformers`; raises `MissingExtraError` where it is not installed."""
    make_torchvision_importable()
    return require("transformers", extra)


def import_timm() -> Any:
    """The module `timm`; raises `MissingExtraError` where it or torchvision is not installed."""
    make_torchvision_importable()
    return require("timm", "vision")


@functools.cache
def make_torchvision_importable() -> None:
    """Import torchvision; where that fails for want of its operators, declare them and import it again.

    A torchvision that is absent or that imports is left alone; one without Pillow raises `MissingExtraError`.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    require("PIL", "vision")  # which torchvision imports, but says so in no way that Transformers understands
    if _imports("torchvision"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
    _KEPT_ALIVE.append(library)
    importlib.import_module("torchvision")


# A torch Library takes its operators with it when it is collected.
_KEPT_ALIVE: list[torch.library.Library] = []


def _imports(name: str) -> ModuleType | None:
    """The module, or None when its import fails for want of compiled operators; no half of it is left behind."""
    before = set(sys.modules)
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if f"operator {name}::" not in str(error):
            raise
        for module in set(sys.modules) - before:
            if module.split(".")[0] == name:
                del sys.modules[module]
        return None
