"""capture and patch on a model small enough to compute by hand."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saekit.errors import ConfigError, HookPointError
from saekit.hooks import capture, patch


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return 2 * x, None


class Adding(nn.Module):
    def forward(self, *, hidden_states: Tensor) -> Tensor:
        return hidden_states + 1


class Model(nn.Module):
    """x -> 2x (a tuple) -> 2x + 1 (a keyword argument) -> 4x + 2, counting its last layer's calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Doubling(), Adding(), Doubling()
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(hidden_states=self.first(x)[0])
        if self.fails:
            raise RuntimeError("inside the forward")
        result: Tensor = self.third(x)[0]
        return result


def hooks_on(model: nn.Module) -> list[str]:
    """Names of modules that carry a hook or a replaced forward."""
    return [
        name
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ]


@pytest.fixture
def x() -> Tensor:
    return torch.arange(6.0).reshape(1, 2, 3)


def test_both_sides_of_several_modules_are_captured_in_one_forward(x: Tensor) -> None:
    model = Model()
    with capture(model, ["first:input", "first", "second:input", "second:output", "third"]) as captured:
        output = model(x)
    assert torch.equal(captured["first:input"], x)
    assert torch.equal(captured["first"], 2 * x)
    assert torch.equal(captured["second:input"], 2 * x)
    assert torch.equal(captured["second:output"], 2 * x + 1)
    assert torch.equal(captured["third"], output)


def test_captured_values_are_detached_and_not_copied(x: Tensor) -> None:
    model = Model()
    x.requires_grad_()
    with capture(model, ["first:input", "second"]) as captured:
        model(x)
    assert not captured["second"].requires_grad
    assert captured["first:input"].data_ptr() == x.data_ptr()


def test_stopping_skips_what_comes_after_the_last_hook_point(x: Tensor) -> None:
    model = Model()
    model.fails = True  # after the second layer
    with capture(model, ["second", "first"], stop=True) as captured:
        returned = model(x)
        assert returned is None
        model(x + 1)
    assert torch.equal(captured["second"], 2 * (x + 1) + 1)


def test_a_stopping_capture_forgets_the_previous_forward(x: Tensor) -> None:
    model = Model()
    with capture(model, ["second"], stop=True) as captured:
        model(x)
        model.second.forward = None  # type: ignore[assignment,method-assign]
        with pytest.raises(TypeError):
            model(x)
        assert captured == {}


@pytest.mark.parametrize("stop", [False, True])
def test_no_hook_is_left_behind(x: Tensor, stop: bool) -> None:
    model = Model()
    with capture(model, ["first", "third:input"], stop=stop):
        assert hooks_on(model) != []
        model(x)
    with patch(model, {"first": lambda value: value}):
        model(x)
    assert hooks_on(model) == []


@pytest.mark.parametrize("stop", [False, True])
def test_no_hook_is_left_behind_after_an_exception(x: Tensor, stop: bool) -> None:
    model = Model()
    model.fails = True
    with pytest.raises(RuntimeError, match="inside the forward"):
        with patch(model, {"first:input": lambda value: value}), capture(model, ["third"], stop=stop):
            model(x)
    with pytest.raises(KeyError):
        with capture(model, ["first"], stop=stop):
            raise KeyError("in the block")
    assert hooks_on(model) == []


def test_a_replaced_forward_that_was_there_before_is_put_back(x: Tensor) -> None:
    model = Model()
    own = vars(model)["forward"] = lambda x: model.first(x)[0] + 7
    with capture(model, ["first"], stop=True):
        assert model(x) is None
    assert vars(model)["forward"] is own
    assert torch.equal(model(x), 2 * x + 7)


def test_nothing_keeps_the_model_alive_after_the_block(x: Tensor) -> None:
    model = Model()
    with capture(model, ["first"], stop=True), patch(model, {"first": lambda value: value}):
        model(x)
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_patching_changes_what_follows_on_either_side_and_in_tuples(x: Tensor) -> None:
    model = Model()
    with patch(model, {"first": lambda value: value * 0, "third:input": lambda value: value + 10}):
        assert torch.equal(model(x), torch.full_like(x, 22))
    with patch(model, {"second:input": lambda value: -value}):
        assert torch.equal(model(x), 2 * (1 - 2 * x))
    assert torch.equal(model(x), 4 * x + 2)


def test_a_capture_inside_a_patch_sees_the_patched_value(x: Tensor) -> None:
    model = Model()
    with patch(model, {"first": torch.zeros_like, "second:input": lambda value: value + 1}):
        with capture(model, ["first", "second:input"]) as captured:
            model(x)
    assert torch.equal(captured["first"], torch.zeros_like(x))
    assert torch.equal(captured["second:input"], torch.ones_like(x))


def test_a_patch_is_brought_to_the_dtype_of_the_model(x: Tensor) -> None:
    model = Model()
    with patch(model, {"first": lambda value: value.double()}):
        assert model(x.bfloat16()).dtype == torch.bfloat16


def test_a_patch_of_another_shape_is_refused(x: Tensor) -> None:
    model = Model()
    with pytest.raises(ConfigError, match=r"'first' returned shape \[1, 2\]; expected \[1, 2, 3\]"):
        with patch(model, {"first": lambda value: value[..., 0]}):
            model(x)
    assert hooks_on(model) == []


@pytest.mark.parametrize("use", [capture, lambda model, points: patch(model, dict.fromkeys(points, torch.zeros_like))])
def test_all_unknown_hook_points_are_named_at_once_with_the_closest(use: Any) -> None:
    with pytest.raises(HookPointError) as error:
        with use(Model(), ["fist", "second", "therd:input"]):
            pass
    assert "'fist' (closest: 'first'" in str(error.value)
    assert "'therd' (closest: 'third'" in str(error.value)


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(HookPointError, match="':input' or ':output'"):
        with capture(Model(), ["first:middle"]):
            pass


def test_stopping_a_call_of_a_part_says_to_call_the_model(x: Tensor) -> None:
    model = Model()
    with pytest.raises(Exception, match="ends calls of the model it was given"):
        with capture(model, ["first"], stop=True):
            model.first(x)
    assert hooks_on(model) == []
