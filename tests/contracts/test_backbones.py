"""What every family of backbones promises, on tiny models of each."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from saekit.backbones import BACKBONES, Backbone, ImageTokens, TextBackbone, TextWindows, load_backbone
from saekit.errors import ConfigError, HookPointError, InputError
from saekit.hooks import capture, patch
from saekit.inputs import Document, ImageInput, SkipLog
from saekit.store.examples import Example

PARAGRAPHS = tiny.TEXT.split(". ")
# Families whose block output is its input plus the two sublayers' outputs, without scales or norms in between.
PLAIN_SUMS = ("llama", "gpt2", "gpt_neox", "gemma", "bloom", "vit", "clip", "siglip", "timm")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    loaded: dict[str, Backbone] = {}

    def load_once(family: str) -> Backbone:
        if family not in loaded:
            loaded[family] = load_backbone(tiny.make(family, tmp_path_factory.mktemp(family)), device="cpu")
        return loaded[family]

    return load_once


@pytest.fixture(params=tiny.FAMILIES)
def backbone(request: pytest.FixtureRequest, load: Callable[[str], Backbone]) -> Backbone:
    return load(request.param)


def every_token(backbone: Backbone) -> TextWindows | ImageTokens:
    if backbone.kind == "text":
        return TextWindows(context_size=48, drop_first=0, drop_special=False, min_tokens=1)
    kinds = {name.split("_")[0] for name in backbone.layout.prefix} | {"patch"}
    return ImageTokens(keep=tuple(kind for kind in ("cls", "register", "patch") if kind in kinds))


def make_examples(backbone: Backbone, n: int, options: TextWindows | ImageTokens | None = None) -> list[Example]:
    skipped = SkipLog()
    inputs: list[Document] | list[ImageInput] = (
        [Document(id=str(i), text=PARAGRAPHS[i % len(PARAGRAPHS)]) for i in range(n)]
        if backbone.kind == "text"
        else [ImageInput(id=str(i), load=tiny.image(seed=i)) for i in range(n)]
    )
    examples = list(backbone.examples(inputs, options or every_token(backbone), skipped))
    assert skipped.count == 0
    return examples[:n]


def one_forward(backbone: Backbone, example: Example) -> tuple[Tensor, ...]:
    """The model's own hidden states: before the first block, then after each; the last may have passed the norm."""
    with torch.inference_mode():
        if backbone.family == "timm":
            _, states = backbone.model.forward_intermediates(
                torch.from_numpy(example.pixels)[None], norm=False, output_fmt="NLC", return_prefix_tokens=True
            )
            return (torch.empty(0), *(torch.cat([prefix, patches], 1) for patches, prefix in states))
        inputs = (
            {"pixel_values": torch.from_numpy(example.pixels)[None]}
            if backbone.kind == "image"
            else {"input_ids": torch.from_numpy(example.token_ids)[None].long()}
        )
        states = backbone.model(**inputs, output_hidden_states=True).hidden_states
        return tuple(states)


def rows_of(
    backbone: Backbone, examples: list[Example], points: list[str], **settings: bool
) -> dict[str, list[Tensor]]:
    """Rows per example, in the order of `examples`."""
    found: dict[str, list[Tensor]] = {point: [torch.empty(0)] * len(examples) for point in points}
    for indices, acts in backbone.activations(examples, points, batch_size=4, **settings):
        for point in points:
            parts = acts[point].split([len(examples[index].kept) for index in indices])
            for index, part in zip(indices, parts, strict=True):
                found[point][index] = part
    return found


def test_the_tiny_models_cover_every_family_of_the_table(load: Callable[[str], Backbone]) -> None:
    assert {load(family).family for family in tiny.FAMILIES} == set(BACKBONES)


def test_captured_residuals_are_the_models_own_hidden_states_bit_for_bit(backbone: Backbone) -> None:
    example = make_examples(backbone, 1)[0]
    points = ["layers.0:input", *(f"layers.{layer}" for layer in range(backbone.n_layers))]
    captured = rows_of(backbone, [example], points)
    states = one_forward(backbone, example)
    assert len(states) == len(points)
    for point, state in list(zip(points, states, strict=True))[:-1]:
        assert len(state) == 0 or torch.equal(captured[point][0], state[0]), point
    last = captured[points[-1]][0]
    norms = [module for module in backbone.model.modules() if "norm" in type(module).__name__.lower()]
    with torch.inference_mode():
        candidates = [last, *(norm(last) for norm in norms if next(norm.parameters()).shape == (backbone.d_model,))]
    assert any(torch.equal(candidate, states[-1][0]) for candidate in candidates)


def test_the_output_of_a_block_is_the_input_of_the_next(backbone: Backbone) -> None:
    captured = rows_of(backbone, make_examples(backbone, 2), ["layers.0", "layers.1:input"])
    assert all(map(torch.equal, captured["layers.0"], captured["layers.1:input"]))


@pytest.mark.parametrize("family", PLAIN_SUMS)
def test_sublayers_add_up_to_the_block(family: str, load: Callable[[str], Backbone]) -> None:
    points = ["layers.1:input", "layers.1.attention", "layers.1.mlp", "layers.1"]
    captured = rows_of(load(family), make_examples(load(family), 1), points)
    before, attention, mlp, after = (captured[point][0] for point in points)
    torch.testing.assert_close(before + attention + mlp, after, rtol=1e-5, atol=1e-5)
    assert attention.norm() > 0
    assert mlp.norm() > 0


def test_the_forward_stops_after_the_last_hook_point(backbone: Backbone) -> None:
    examples = make_examples(backbone, 1)
    reached: list[str] = []
    last = backbone.resolve(f"layers.{backbone.n_layers - 1}")
    with patch(backbone.model, {last: lambda value: reached.append("last block") or value}):
        list(backbone.activations(examples, ["layers.0", "layers.0.mlp"], batch_size=1))
        assert reached == []
        list(backbone.activations(examples, [f"layers.{backbone.n_layers - 1}"], batch_size=1))
        assert reached == ["last block"]


def test_no_hook_is_left_on_the_model_even_after_a_failure(backbone: Backbone) -> None:
    def hooks() -> int:
        modules = list(backbone.model.modules())
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in modules)

    before = hooks()
    examples = make_examples(backbone, 2)
    list(backbone.activations(examples, ["layers.0", "layers.1.attention"], batch_size=2))
    abandoned = backbone.activations(examples, ["layers.0"], batch_size=1)
    next(abandoned)
    assert hooks() == before

    def explode(value: Tensor) -> Tensor:
        raise RuntimeError("in a hook")

    with pytest.raises(RuntimeError, match="in a hook"):
        with patch(backbone.model, {backbone.resolve("layers.0:input"): explode}):
            list(backbone.activations(examples, ["layers.1"], batch_size=2))
    assert hooks() == before


def test_a_batch_gives_each_example_the_rows_it_has_alone(backbone: Backbone) -> None:
    examples = make_examples(backbone, 7)
    point = f"layers.{backbone.n_layers - 1}"
    together = rows_of(backbone, examples, [point])[point]
    for example, rows in zip(examples, together, strict=True):
        assert rows.shape == (len(example.kept), backbone.d_model)
        torch.testing.assert_close(rows, rows_of(backbone, [example], [point])[point][0], rtol=1e-4, atol=1e-5)


def test_only_kept_positions_come_back_in_their_order(backbone: Backbone) -> None:
    whole = make_examples(backbone, 3)
    some = [replace(example, kept=example.kept[3:9:2]) for example in whole]
    everything, few = (rows_of(backbone, examples, ["layers.0"])["layers.0"] for examples in (whole, some))
    for all_rows, kept_rows in zip(everything, few, strict=True):
        assert torch.equal(all_rows[3:9:2], kept_rows)


def test_activations_are_the_same_every_time_and_can_be_trained_on(backbone: Backbone) -> None:
    examples = make_examples(backbone, 5)
    first, second = (list(backbone.activations(examples, ["layers.1"], batch_size=2)) for _ in range(2))
    assert [indices for indices, _ in first] == [indices for indices, _ in second]
    assert sorted(index for indices, _ in first for index in indices) == list(range(5))
    assert all(torch.equal(a["layers.1"], b["layers.1"]) for (_, a), (_, b) in zip(first, second, strict=True))
    weight = nn.Parameter(torch.ones(backbone.d_model))
    (first[0][1]["layers.1"] * weight).sum().backward()
    assert weight.grad is not None


def test_the_model_is_frozen_and_in_eval_mode(backbone: Backbone) -> None:
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_every_hook_point_has_the_width_it_says(backbone: Backbone) -> None:
    examples = make_examples(backbone, 1)
    points = backbone.hook_points()
    assert len(points) == len(set(points)) == 4 * backbone.n_layers
    ((_, acts),) = backbone.activations(examples, list(points), batch_size=1)
    assert backbone.widths() == {point: acts[point].shape[1] for point in points}
    assert backbone.widths()["layers.0"] == backbone.d_model


def test_hook_points_are_listed_in_the_order_of_the_forward(backbone: Backbone) -> None:
    seen: list[str] = []
    named = {backbone.resolve(point): point for point in backbone.hook_points()}
    edits = {path: lambda value, point=point: seen.append(point) or value for path, point in named.items()}
    with patch(backbone.model, edits):
        backbone_inputs = make_examples(backbone, 1)
        list(backbone.activations(backbone_inputs, [f"layers.{backbone.n_layers - 1}"], batch_size=1))
    assert seen == list(backbone.hook_points())


def test_module_paths_and_paths_inside_a_block_are_hook_points(backbone: Backbone) -> None:
    block = backbone.blocks.block(1)
    assert backbone.resolve(block) == backbone.resolve("layers.1") == f"{block}:output"
    assert backbone.resolve(f"{block}:input") == backbone.resolve("layers.1:input")
    leaves = backbone.model.get_submodule(block).named_modules()
    inner = next(name for name, module in leaves if getattr(module, "weight", torch.empty(0)).ndim == 2)
    assert backbone.resolve(f"layers.1.{inner}:input") == f"{block}.{inner}:input"
    assert backbone.width(f"layers.1.{inner}") == backbone.width(f"{block}.{inner}")
    assert backbone.resolve("layers.1.attention") != backbone.resolve("layers.1.mlp")


def test_an_unknown_hook_point_is_refused_with_the_closest(backbone: Backbone) -> None:
    with pytest.raises(HookPointError, match=r"'layer\.1'.*Closest: 'layers\.1'"):
        backbone.resolve("layer.1")
    with pytest.raises(HookPointError, match=f"0 to {backbone.n_layers - 1}"):
        list(backbone.activations(make_examples(backbone, 1), ["layers.99"], batch_size=1))


def test_a_description_is_json_and_loads_the_same_backbone(backbone: Backbone) -> None:
    described = json.loads(json.dumps(backbone.describe()))
    again = load_backbone(described["spec"], dtype=described["dtype"], device="cpu")
    assert json.loads(json.dumps(again.describe())) == described
    assert set(described) >= {"spec", "kind", "family", "d_model", "n_layers", "dtype", "layout", "preprocessing"}


def test_another_dtype_is_the_dtype_of_the_rows(backbone: Backbone) -> None:
    half = load_backbone(backbone.spec, dtype="bfloat16", device="cpu")
    assert half.dtype == torch.bfloat16
    exact, rounded = (rows_of(b, make_examples(b, 1), ["layers.0"])["layers.0"][0] for b in (backbone, half))
    assert rounded.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(exact, rounded.float()).min() > 0.98


def test_n_tokens_is_the_length_of_the_models_sequence(backbone: Backbone) -> None:
    example = make_examples(backbone, 1)[0]
    with capture(backbone.model, [backbone.resolve("layers.0")]) as captured:
        list(backbone.activations([example], ["layers.0"], batch_size=1))
        assert captured[backbone.resolve("layers.0")].shape[1] == backbone.n_tokens(example)
    assert len(example.kept) == backbone.n_tokens(example)


def test_prefix_tokens_do_not_depend_on_the_content_and_content_does(backbone: Backbone) -> None:
    """The layout's boundary is where the input of the first block starts to depend on what is shown."""
    n_prefix = backbone.layout.n_prefix
    one, other = rows_of(backbone, make_examples(backbone, 2), ["layers.0:input"])["layers.0:input"]
    assert torch.equal(one[:n_prefix], other[:n_prefix])
    assert not torch.isclose(one[n_prefix], other[n_prefix]).all()


def test_the_default_options_keep_content_only(backbone: Backbone) -> None:
    example = make_examples(backbone, 1, backbone.default_options())[0]
    assert example.kept.dtype == np.int32
    assert example.kept.min() == backbone.layout.n_prefix if backbone.kind == "image" else example.kept.min() >= 1
    if backbone.kind == "image":
        assert len(example.kept) == math.prod(example.geometry.grid)


def test_inputs_and_options_of_the_other_kind_are_refused(backbone: Backbone) -> None:
    wrong = ImageTokens() if backbone.kind == "text" else TextWindows()
    with pytest.raises(ConfigError, match="options are"):
        list(backbone.examples([], wrong, SkipLog()))
    inputs = [ImageInput(id="0", load=tiny.image())] if backbone.kind == "text" else [Document(id="0", text="hello")]
    with pytest.raises(InputError, match="reads"):
        list(backbone.examples(inputs, backbone.default_options(), SkipLog()))


def test_an_empty_list_gives_no_batches(backbone: Backbone) -> None:
    assert list(backbone.activations([], ["layers.0"], batch_size=4)) == []
    with pytest.raises(ConfigError, match="batch_size=0"):
        list(backbone.activations([], ["layers.0"], batch_size=0))


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_only_families_that_keep_packed_texts_apart_pack(family: str, load: Callable[[str], Backbone]) -> None:
    backbone = load(family)
    assert isinstance(backbone, TextBackbone)
    examples, point = make_examples(backbone, 9), "layers.1"
    if family in ("bert", "bloom"):
        with pytest.raises(ConfigError, match="pack=False"):
            list(backbone.activations(examples, [point], batch_size=4, pack=True))
        return
    packed, alone = (rows_of(backbone, examples, [point], pack=pack)[point] for pack in (True, False))
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
