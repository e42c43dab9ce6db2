"""Read activations out of a model's forward pass (`capture`) or replace them in flight (`patch`).

A hook point names a module and a side of it: `"model.layers.6"` or `"model.layers.6:output"` is what that module
returns, `"model.layers.6:input"` is the first tensor it is given. Backbones translate `"layers.6"` into this.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saekit.errors import ConfigError, HookPointError, closest

SIDES = ("input", "output")


@contextmanager
def capture(model: nn.Module, hook_points: Sequence[str], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """A dict that every forward of `model` inside the block fills with the activations at `hook_points`.

    The values are detached but not copied, in the shape the module has them, mostly [batch token width]; of a module
    that returns a tuple, the first tensor. A module that runs several times in a forward leaves its last value.

    With `stop`, a call of `model` ends as soon as every hook point has been seen and **returns None**; later layers
    cost nothing. This holds for calls of `model` itself, not of its submodules. Hooks are gone when the block ends,
    also after an exception. Opened inside `patch`, `capture` sees the patched values.

    Raises `HookPointError` for all unknown hook points at once.
    """
    targets = _targets(model, hook_points)
    captured: dict[str, Tensor] = {}
    pending: set[str] = set()

    def begin() -> None:
        captured.clear()
        pending.update(targets)

    def record(point: str, value: Tensor) -> None:
        captured[point] = value.detach()
        pending.discard(point)
        if stop and not pending:
            raise _Stop

    with ExitStack() as stack:
        if stop:
            stack.enter_context(_stoppable(model, begin))
        for point, (module, side) in targets.items():
            handle = _observe(module, side, point, record)
            stack.callback(handle.remove)
        yield captured


@contextmanager
def patch(model: nn.Module, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace the activations at each hook point by what its function makes of them, in every forward inside the block.

    A function takes the activation, mostly [batch token width], and returns one of the same shape; it is brought to the
    model's dtype and device, so a float32 autoencoder can sit in a bfloat16 model. It must not change its argument in
    place. Hooks are gone when the block ends, also after an exception.

    Raises `HookPointError` for all unknown hook points at once, and `ConfigError` when a function changes the shape.
    """
    targets = _targets(model, list(edits))
    with ExitStack() as stack:
        for point, (module, side) in targets.items():
            handle = _edit(module, side, point, edits[point])
            stack.callback(handle.remove)
        yield


def split_side(hook_point: str) -> tuple[str, str]:
    """`"path:input"` -> `("path", "input")`; a hook point without a side is an output."""
    path, colon, side = hook_point.partition(":")
    if colon and side not in SIDES:
        raise HookPointError(f"Hook point {hook_point!r} ends in {side!r}; a side is ':input' or ':output'.")
    return path, side or "output"


class _Stop(Exception):
    """Ends a forward; `_stoppable` catches it. Reaching a user means that a submodule was called directly."""

    def __str__(self) -> str:
        return "capture(stop=True) ends calls of the model it was given; call that model, not a part of it."


@contextmanager
def _stoppable(model: nn.Module, begin: Callable[[], None]) -> Iterator[None]:
    own = vars(model).get("forward")
    forward = model.forward

    def stoppable_forward(*args: Any, **kwargs: Any) -> Any:
        begin()
        try:
            return forward(*args, **kwargs)
        except _Stop:
            return None

    vars(model)["forward"] = stoppable_forward
    try:
        yield
    finally:
        if own is None:
            del vars(model)["forward"]
        else:
            vars(model)["forward"] = own


def _targets(model: nn.Module, hook_points: Sequence[str]) -> dict[str, tuple[nn.Module, str]]:
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    split = {point: split_side(point) for point in hook_points}
    unknown = [path for path, _ in split.values() if path not in modules]
    if unknown:
        near = "; ".join(f"{path!r} (closest: {closest(path, modules)})" for path in unknown)
        raise HookPointError(f"{type(model).__name__} has no module {near}.")
    return {point: (modules[path], side) for point, (path, side) in split.items()}


def _observe(module: nn.Module, side: str, point: str, record: Callable[[str, Tensor], None]) -> RemovableHandle:
    if side == "input":

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record(point, _input_tensor(args, kwargs, point)[1])

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        record(point, _output_tensor(output, point))

    return module.register_forward_hook(after)


def _edit(module: nn.Module, side: str, point: str, edit: Callable[[Tensor], Tensor]) -> RemovableHandle:
    def edited(value: Tensor) -> Tensor:
        new = edit(value)
        if new.shape != value.shape:
            raise ConfigError(f"The patch at {point!r} returned shape {list(new.shape)}; expected {list(value.shape)}.")
        return new.to(device=value.device, dtype=value.dtype)

    if side == "input":

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            key, value = _input_tensor(args, kwargs, point)
            if isinstance(key, int):
                return (*args[:key], edited(value), *args[key + 1 :]), kwargs
            return args, {**kwargs, key: edited(value)}

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        new = edited(_output_tensor(output, point))
        if isinstance(output, Tensor):
            return new
        return type(output)([new, *output[1:]])

    return module.register_forward_hook(after)


def _input_tensor(args: tuple[Any, ...], kwargs: dict[str, Any], point: str) -> tuple[int | str, Tensor]:
    """The first tensor argument and where it is; Transformers passes `hidden_states` by position or by name."""
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in named:
        if isinstance(value, Tensor):
            return key, value
    raise HookPointError(f"The module at {point!r} was called without a tensor.")


def _output_tensor(output: Any, point: str) -> Tensor:
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(first, Tensor):
        return first
    raise HookPointError(
        f"The module at {point!r} returns {type(first).__name__}; a hook point needs a tensor or a tuple that starts "
        "with one. Choose a module inside it."
    )
