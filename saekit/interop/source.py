"""`Source`: the files of a foreign autoencoder, opened without running code that is in them, and checked."""

import functools
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saekit.errors import CheckpointError
from saekit.files import read_json

PICKLES = (".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Source:
    """A folder, or one file, of a foreign autoencoder."""

    path: Path
    label: str
    """What was asked for, folders included: `owner/name/layer_20/width_16k`. Some formats say the layer there alone."""

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @functools.cached_property
    def files(self) -> tuple[str, ...]:
        """Names in the folder, or of the one file."""
        if not self.path.is_dir():
            return (self.path.name,)
        return tuple(sorted(each.name for each in self.path.iterdir() if not each.name.startswith(".")))

    def has(self, *names: str) -> bool:
        return all((self.folder / name).is_file() for name in names)

    @functools.cached_property
    def pickle(self) -> Path | None:
        """The one `.pt` file that this is, or holds."""
        if self.path.is_file():
            return self.path if self.path.suffix in PICKLES else None
        found = [self.path / name for name in self.files if name.endswith(PICKLES)]
        return found[0] if len(found) == 1 else None

    @functools.cached_property
    def pickled(self) -> Any:
        """What the `.pt` file holds; None when there is none, or it begins with something else (saev's JSON)."""
        if self.pickle is None:
            return None
        with open(self.pickle, "rb") as file:
            is_torch = file.read(1) != b"{"
        return load_pickle(self.pickle) if is_torch else None

    def config(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder."""
        config = read_json(self.folder / name, CheckpointError)
        if not isinstance(config, dict):
            raise CheckpointError(f"{self.folder / name} is not a JSON object.")
        return config

    def safetensors_names(self, name: str) -> tuple[str, ...]:
        """The tensors' names in a safetensors file; none when it is absent or damaged."""
        try:
            with safe_open(self.folder / name, framework="pt") as file:
                return tuple(file.keys())
        except (OSError, SafetensorError):
            return ()

    def number_after(self, word: str) -> int | None:
        """The number that follows `word` in the label or in the file's path, e.g. `layer_` in `.../layer_20/...`."""
        for text in (self.label, str(self.path)):
            if found := re.findall(rf"{re.escape(word)}(\d+)", text):
                return int(found[-1])
        return None


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, floating ones as float32."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        return _float32(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}). Fetch it again.") from None


def load_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file as tensors, floating ones as float32."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _float32({name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files})
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a whole npz file of plain arrays ({error}). Fetch it again.") from None


def load_pickle(file: Any, path: Path | None = None) -> Any:
    """What a `.pt` file holds if it is tensors and plain values only; nothing else in it is run."""
    path = Path(file) if path is None else path
    try:
        with warnings.catch_warnings():  # torch warns of pickles by others, which it then refuses
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except pickle.UnpicklingError as error:
        unknown = re.findall(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of {unknown[0]}" if unknown else "objects that are not tensors"
        raise CheckpointError(
            f"{path} holds {what}; opening it would run code of whoever made the file, so it is refused. Where you "
            "trust it, and its library is installed, write its tensors alone: torch.save(torch.load(path, "
            "weights_only=False).state_dict(), 'weights.pt'), or ['state_dict'] in place of .state_dict() for a dict."
        ) from None
    # torch's reader runs over other bytes as if they were a pickle, and fails wherever that happens to end.
    except (
        *(RuntimeError, OSError, EOFError, ValueError, zipfile.BadZipFile),
        *(LookupError, TypeError, AttributeError, AssertionError, struct.error),
    ) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is not a whole torch file ({first}). Fetch it again.") from None


def tensors_of(value: Any, path: Path) -> dict[str, Tensor]:
    """`value` as a mapping of names to tensors, floating ones as float32."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not named tensors.")
    return _float32({str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)})


def check(
    where: str,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, str],
    *,
    optional: Mapping[str, str] | None = None,
    ignored: Collection[str] = (),
    sizes: Mapping[str, int | None] | None = None,
    said_by: str = "the config",
) -> dict[str, int]:
    """The sizes of the axes that `shapes` names ("d F" for `[d_in d_sae]`, "" for a scalar), found in the tensors.

    `sizes` are those that the config states, where it does. Raises one `CheckpointError` that lists every missing,
    unexpected and mis-shaped tensor, every one with values that are not finite, and how config and weights contradict.
    """
    optional = optional or {}
    stated = {axis: size for axis, size in (sizes or {}).items() if size is not None}
    problems = [f"missing {name} [{axes.replace(' ', ', ')}]" for name, axes in shapes.items() if name not in tensors]
    known = {*shapes, *optional, *ignored}
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in tensors if name not in known]
    present = {name: axes.split() for name, axes in {**shapes, **optional}.items() if name in tensors}
    found: dict[str, list[int]] = {}
    for name, axes in present.items():
        if len(axes) == tensors[name].dim():
            for axis, size in zip(axes, tensors[name].shape, strict=True):
                found.setdefault(axis, []).append(size)
    # What most tensors say, so that one of another shape is named as the odd one.
    agreed = {axis: max(found_sizes, key=found_sizes.count) for axis, found_sizes in found.items()}
    for axis, size in stated.items():
        if axis in agreed and agreed[axis] != size:
            problems.append(f"{said_by} says {axis}={size} and the weights {axis}={agreed[axis]}")
    agreed = {**stated, **agreed}
    for name, axes in present.items():
        expected = [agreed.get(axis, -1) for axis in axes]
        if list(tensors[name].shape) != expected:
            problems.append(f"{name} has shape {list(tensors[name].shape)}, expected {expected}")
        elif tensors[name].is_floating_point() and not bool(tensors[name].isfinite().all()):
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise CheckpointError(f"{where} is not what its format says: {'; '.join(problems)}.")
    return agreed


def one_of(where: str, name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """`value`, or `CheckpointError` that names the values of a config's field that can be read."""
    if value not in allowed:
        raise CheckpointError(
            f"{where} says {name}={value!r}; saekit can read {', '.join(repr(each) for each in allowed)}."
        )
    return value


def _float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
