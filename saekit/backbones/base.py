"""What every backbone does: name its hook points, turn inputs into examples, and give the activations of examples."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saekit.backbones.blocks import find_blocks
from saekit.backbones.options import ImageTokens, TextWindows
from saekit.errors import ConfigError, HookPointError, InputError, closest
from saekit.files import to_tagged
from saekit.hooks import capture, split_side
from saekit.inputs import Document, ImageInput, SkipLog
from saekit.store.examples import Example, TokenLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Location = dict[str, Any]
"""Where a checkpoint is, as keyword arguments of whatever reads it."""

_Input = TypeVar("_Input")

_CANONICAL = re.compile(r"layers\.(\d+)(?:\.(attention|mlp))?$")
_IN_BLOCK = re.compile(r"layers\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Batch:
    """One forward's worth of examples."""

    indices: list[int]
    """Which examples, as indices into the list they came from."""
    inputs: dict[str, Any]
    """Keyword arguments of the model's forward."""
    kept: Int[Tensor, " n_kept"]
    """Kept tokens in the flattened [batch token] of this forward, in order of `indices`, then position."""


class Backbone(ABC):
    """A frozen model in eval mode, with one grammar of hook points, whatever its family.

    `"layers.6"` is the residual stream after block 6 and `"layers.6:input"` the one before it; `"layers.6.attention"`
    and `"layers.6.mlp"` are what those sublayers put out; `"layers.6.<path>"` and every module path of the model, with
    `:input` or `:output`, name the rest. Blocks count from 0.

    A backbone holds no state between calls besides the model; threads may share it as long as they take turns.
    """

    family: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, spec: str, model: nn.Module, n_layers: int | None) -> None:
        """Freeze `model` and find its `n_layers` blocks. Raises `BackboneError` when it has no such list."""
        self.spec = spec
        self.model = model.eval().requires_grad_(False)
        self.blocks = find_blocks(model, n_layers)
        self.n_layers = self.blocks.n_layers
        parameter = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        self.dtype: torch.dtype = parameter.dtype
        self.device: torch.device = parameter.device
        self._widths: dict[str, int] = {}
        self.d_model = self.width("layers.0")

    @classmethod
    @abstractmethod
    def load(cls, spec: str, location: Location, dtype: str | None, device: torch.device) -> "Backbone":
        """Read the checkpoint at `location`; raises `BackboneError` when that cannot be done."""

    @property
    def layout(self) -> TokenLayout:
        """Which positions of a sequence are what, with the default options."""
        return self.layout_for(self.default_options())

    @abstractmethod
    def layout_for(self, options: TextWindows | ImageTokens) -> TokenLayout:
        """Which positions of a sequence are what, with these options."""

    @abstractmethod
    def default_options(self) -> TextWindows | ImageTokens:
        """Options that suit this model."""

    @abstractmethod
    def examples(
        self,
        inputs: Iterable[Document] | Iterable[ImageInput],
        options: TextWindows | ImageTokens,
        skipped: SkipLog,
    ) -> Iterator[Example]:
        """The examples of `inputs`, in order, read as they are asked for; one that cannot be used is put in `skipped`.

        Raises `ConfigError` for options that do not suit this model.
        """

    @abstractmethod
    def n_tokens(self, example: Example) -> int:
        """Length of the model's sequence for this example, prefix included."""

    @abstractmethod
    def logits(self, examples: Sequence[Example]) -> Tensor:
        """The model's output for one batch, [batch token vocab] or [batch class].

        Text is padded on the right; what stands beyond an example's `n_tokens` means nothing. Raises `BackboneError`
        for a checkpoint without a head.
        """

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How inputs are prepared, as JSON."""

    @abstractmethod
    def _batches(self, examples: Sequence[Example], batch_size: int, pack: bool) -> Iterator[Batch]:
        """Split `examples` into forwards of at most `batch_size` examples."""

    @abstractmethod
    def _probe_inputs(self) -> dict[str, Any]:
        """Keyword arguments of a small forward, to learn widths from."""

    def hook_points(self) -> tuple[str, ...]:
        """The canonical hook points, in the order in which a forward meets them."""
        sublayers = [
            name for name, path in (("attention", self.blocks.attention), ("mlp", self.blocks.mlp)) if path is not None
        ]
        names = ["layers.{}:input", *(f"layers.{{}}.{name}" for name in sublayers), "layers.{}"]
        return tuple(name.format(layer) for layer in range(self.n_layers) for name in names)

    def __repr__(self) -> str:
        """One line: which model, its size, where it computes."""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({self.spec!r}, {self.n_layers} layers, d_model {self.d_model}, {dtype} on "
            f"{self.device})"
        )

    def resolve(self, hook_point: str) -> str:
        """The hook point as `capture` and `patch` of `self.model` take it: a module path and a side.

        Raises `HookPointError` with the closest names.
        """
        path, side = split_side(hook_point)
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for candidate in self._module_paths(path):
            if candidate in modules:
                return f"{candidate}:{side}"
        near = closest(path, [*self.hook_points(), *(f"layers.{layer}" for layer in range(self.n_layers)), *modules])
        raise HookPointError(
            f"{self.spec} has no hook point {hook_point!r}; its layers are 0 to {self.n_layers - 1}. Closest: {near}. "
            f"List all: saekit hooks {self.spec}"
        )

    def _module_paths(self, path: str) -> Iterator[str]:
        if match := _CANONICAL.match(path):
            layer, sublayer = match.groups()
            inside = {"attention": self.blocks.attention, "mlp": self.blocks.mlp}.get(sublayer) if sublayer else ""
            if inside is not None:
                yield f"{self.blocks.block(int(layer))}.{inside}".removesuffix(".")
        yield path
        if match := _IN_BLOCK.match(path):
            yield f"{self.blocks.block(int(match[1]))}.{match[2]}"

    def width(self, hook_point: str) -> int:
        """Width of the rows captured at `hook_point`. Raises `HookPointError` where there is no [batch token width]."""
        point = self.resolve(hook_point)
        if point not in self._widths:
            self._measure([point])
        return self._widths[point]

    def widths(self) -> dict[str, int]:
        """Width at every canonical hook point."""
        points = {name: self.resolve(name) for name in self.hook_points()}
        self._measure([point for point in points.values() if point not in self._widths])
        return {name: self._widths[point] for name, point in points.items()}

    def _measure(self, points: list[str]) -> None:
        for point, value in self._forward(points, self._probe_inputs()).items():
            self._widths[point] = int(_rows(value, point).shape[-1])

    def activations(
        self, examples: Sequence[Example], hook_points: Sequence[str], batch_size: int, pack: bool = False
    ) -> Iterator[tuple[list[int], dict[str, Float[Tensor, "row width"]]]]:
        """Activations of the kept tokens of `examples`, a batch at a time, in the model's dtype and on its device.

        Yields the indices of the examples of a batch and, for each hook point, one row per kept token, in the order of
        those indices, then position. Batches hold at most `batch_size` examples; texts are sorted by length first, so
        that little is spent on padding. The same list gives the same batches. The forward stops after the last hook
        point that is needed. With `pack`, several texts share a row of the batch, each seeing only itself.

        Raises `HookPointError` for an unknown hook point, and `ConfigError` when this model cannot pack.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}; it is at least 1.")
        points = {hook_point: self.resolve(hook_point) for hook_point in hook_points}
        for batch in self._batches(examples, batch_size, pack):
            captured = self._forward(list(dict.fromkeys(points.values())), batch.inputs)
            kept = batch.kept.to(self.device, non_blocking=True)
            # Outside inference mode: these rows may be trained on.
            with torch.no_grad():
                rows = {
                    point: _rows(value, point).flatten(0, 1).index_select(0, kept) for point, value in captured.items()
                }
            yield batch.indices, {hook_point: rows[point] for hook_point, point in points.items()}

    def _forward(self, points: list[str], inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Activations at resolved hook points of one forward, which stops after the last of them."""
        if not points:
            return {}
        with torch.inference_mode(), capture(self.model, points, stop=True) as captured:
            self.model(**inputs)
        silent = [point for point in points if point not in captured]
        if silent:
            raise HookPointError(f"{self.spec}: a forward does not run {', '.join(map(repr, silent))}.")
        return captured

    def describe(self) -> dict[str, Any]:
        """What a stored artifact says about its backbone, as JSON: enough to load it again."""
        return {
            "spec": self.spec,
            "kind": self.kind,
            "family": self.family,
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "dtype": str(self.dtype).removeprefix("torch."),
            "layout": to_tagged(self.layout),
            "preprocessing": self.preprocessing(),
        }


def only(inputs: Iterable[object], kind: type[_Input], spec: str) -> Iterator[_Input]:
    """`inputs`, all of which must be of `kind`; raises `InputError` at the first that is not."""
    for given in inputs:
        if not isinstance(given, kind):
            raise InputError(f"{spec} reads {kind.__name__} inputs, not {type(given).__name__}.")
        yield given


def resolve_dtype(name: str | None, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in: by default float32 on a CPU, and on other devices that of the checkpoint, `stored`."""
    if name is None:
        return torch.float32 if device.type == "cpu" else stored
    if name not in DTYPES:
        raise ConfigError(f"dtype={name!r}; it is one of {', '.join(DTYPES)}. Closest: {closest(name, DTYPES, 1)}")
    return DTYPES[name]


def resolve_device(name: str | None) -> torch.device:
    """The device named, by default CUDA where there is one. Raises `ConfigError` for one that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        raise ConfigError(
            f"device={name!r} cannot be used ({str(cause).splitlines()[0]}). Type: device='cpu'"
        ) from None
    return device


def _rows(value: Tensor, point: str) -> Tensor:
    if value.ndim != 3:
        raise HookPointError(f"{point!r} has shape {list(value.shape)}; activation rows need [batch token width].")
    return value
