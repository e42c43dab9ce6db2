"""The store of activations: rows on disk, the examples they come from, and shuffled batches of them.

Names are imported on first use: reading examples needs NumPy alone, reading activations needs torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saekit.store.example_writer import ExampleTableWriter
    from saekit.store.examples import Example, ExampleTable, ImageGeometry, TokenLayout
    from saekit.store.loader import ActivationLoader
    from saekit.store.reader import ActivationStore
    from saekit.store.writer import StoreWriter

_WHERE = {
    "ActivationLoader": "saekit.store.loader",
    "ActivationStore": "saekit.store.reader",
    "Example": "saekit.store.examples",
    "ExampleTable": "saekit.store.examples",
    "ExampleTableWriter": "saekit.store.example_writer",
    "ImageGeometry": "saekit.store.examples",
    "StoreWriter": "saekit.store.writer",
    "TokenLayout": "saekit.store.examples",
}

__all__ = [
    "ActivationLoader",
    "ActivationStore",
    "Example",
    "ExampleTable",
    "ExampleTableWriter",
    "ImageGeometry",
    "StoreWriter",
    "TokenLayout",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'saekit.store' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
