"""Language models: windows, what is kept, tokenizers, the unembedding, and what cannot be loaded."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from saekit.backbones import CausalLM, EncoderLM, TextBackbone, TextWindows, load_backbone
from saekit.errors import BackboneError, ConfigError, InputError
from saekit.hooks import capture
from saekit.inputs import Document, SkipLog
from saekit.store.examples import Example

LONG = tiny.TEXT * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make_once(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny.make(family, made[family])
        return made[family]

    return make_once


@pytest.fixture(scope="module")
def load(folder: Callable[[str], Path]) -> Callable[[str], TextBackbone]:
    loaded: dict[str, TextBackbone] = {}

    def load_once(family: str) -> TextBackbone:
        if family not in loaded:
            backbone = load_backbone(str(folder(family)), device="cpu")
            assert isinstance(backbone, TextBackbone)
            loaded[family] = backbone
        return loaded[family]

    return load_once


def windows(backbone: TextBackbone, texts: list[str], **options: object) -> tuple[list[Example], SkipLog]:
    skipped = SkipLog()
    documents = [Document(id=f"d{i}", text=text, label="sea") for i, text in enumerate(texts)]
    return list(backbone.examples(documents, TextWindows(**options), skipped)), skipped  # type: ignore[arg-type]


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_a_long_text_becomes_windows_that_each_begin_with_the_prefix(
    family: str, load: Callable[[str], TextBackbone]
) -> None:
    backbone = load(family)
    examples, _ = windows(backbone, [LONG], context_size=20)
    front, back = backbone.wrapping(TextWindows(context_size=20))
    assert len(examples) > 5
    content = []
    for example in examples:
        assert example.document == "d0"
        assert example.label == "sea"
        assert example.start == len(content)
        assert len(example.token_ids) <= 20
        assert list(example.token_ids[: len(front)]) == front
        content += list(example.token_ids[len(front) : len(example.token_ids) - len(back)])
    whole = backbone.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    assert content == whole[: len(content)]
    assert len(whole) - len(content) < 8


def test_the_prefix_is_the_token_between_documents_and_not_the_chat_token(load: Callable[[str], TextBackbone]) -> None:
    backbone = load("llama")
    assert backbone.tokenizer.bos_token == "<|im_start|>"
    assert backbone.encode_text("sea")[0] == backbone.tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    assert load("gemma").encode_text("sea")[0] == load("gemma").tokenizer.bos_token_id
    assert load("bert").encode_text("sea")[0] == load("bert").tokenizer.cls_token_id
    assert load("bert").encode_text("sea")[-1] == load("bert").tokenizer.sep_token_id


def test_another_prefix_or_none_can_be_asked_for(load: Callable[[str], TextBackbone]) -> None:
    backbone = load("llama")
    (example, *_), _ = windows(backbone, [LONG], context_size=20, prefix="<|im_start|>")
    assert example.token_ids[0] == 1
    options = TextWindows(context_size=20, prefix="none")
    (example, *_), _ = windows(backbone, [LONG], context_size=20, prefix="none")
    assert list(example.token_ids) == backbone.tokenizer(LONG)["input_ids"][:20]
    assert backbone.layout_for(options).prefix == ()
    assert backbone.layout.prefix == ("bos",)
    with pytest.raises(ConfigError, match=r"'<\|endofttext\|>' is not one token.*Closest: '<\|endoftext\|>'"):
        windows(backbone, [LONG], context_size=20, prefix="<|endofttext|>")
    with pytest.raises(ConfigError, match="'auto' or 'none'"):
        windows(load("bert"), [LONG], context_size=20, prefix="[MASK]")


def test_the_first_positions_and_special_tokens_are_dropped(load: Callable[[str], TextBackbone]) -> None:
    backbone = load("llama")
    text = "The ferry sails<|endoftext|> at two, the gulls complain"
    (example,), _ = windows(backbone, [text], drop_first=3, context_size=48)
    inside = int(np.flatnonzero(example.token_ids == 0)[1])
    expected = [position for position in range(3, len(example.token_ids)) if position != inside]
    assert example.kept.tolist() == expected
    (example,), _ = windows(backbone, [text], drop_first=0, drop_special=False, context_size=48)
    assert example.kept.tolist() == list(range(len(example.token_ids)))


def test_an_encoders_end_token_is_special_and_the_default_drops_both(load: Callable[[str], TextBackbone]) -> None:
    backbone = load("bert")
    (example,), _ = windows(backbone, ["the gulls stand on every post, the ferry sails"], context_size=40)
    assert example.kept.tolist() == list(range(1, len(example.token_ids) - 1))


def test_what_cannot_be_used_is_skipped_and_counted_in_its_place(load: Callable[[str], TextBackbone]) -> None:
    good = "The ferry sails at two and carries post, milk and three cars."
    examples, skipped = windows(load("llama"), [good, "", " \n", "hi", "bad \ud800 text", good], context_size=48)
    assert [example.document for example in examples] == ["d0", "d5"]
    assert skipped.reasons == {"no text": 2, "fewer than 8 tokens": 1, "not valid Unicode": 1}
    assert [id for id, _ in skipped.first] == ["d1", "d2", "d3", "d4"]


def test_skipping_is_logged_between_the_examples_before_and_after_it(load: Callable[[str], TextBackbone]) -> None:
    good = "The ferry sails at two and carries post, milk and three cars."
    skipped = SkipLog()
    documents = [Document(id=str(i), text=text) for i, text in enumerate([good, "", good, "hi"])]
    counts = [skipped.count for _ in load("llama").examples(documents, TextWindows(context_size=48), skipped)]
    assert [*counts, skipped.count] == [0, 1, 2]


def test_texts_are_read_as_they_are_asked_for(load: Callable[[str], TextBackbone]) -> None:
    read: list[int] = []

    def documents() -> "object":
        for i in range(1000):
            read.append(i)
            yield Document(id=str(i), text=LONG)

    examples = load("llama").examples(documents(), TextWindows(context_size=48), SkipLog())  # type: ignore[arg-type]
    next(examples)
    assert len(read) < 200


@pytest.mark.parametrize("size", [65, 1000])
def test_a_context_longer_than_the_models_is_refused(size: int, load: Callable[[str], TextBackbone]) -> None:
    with pytest.raises(ConfigError, match=f"context_size={size} exceeds the 64 positions"):
        windows(load("gpt2"), [LONG], context_size=size)
    assert load("gpt2").default_options().context_size == 64


def test_a_context_with_no_room_for_text_is_refused(load: Callable[[str], TextBackbone]) -> None:
    with pytest.raises(ConfigError, match="leaves 6 tokens of text in a window, fewer than min_tokens=8"):
        windows(load("bert"), [LONG], context_size=8)


@pytest.mark.parametrize(
    ("field", "value"),
    [("context_size", 1), ("drop_first", -1), ("drop_first", 256), ("min_tokens", 0), ("prefix", "")],
)
def test_options_that_cannot_work_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"TextWindows.{field}={value!r}"):
        TextWindows(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma"])
def test_the_bytes_of_a_texts_tokens_join_to_the_text(family: str, load: Callable[[str], TextBackbone]) -> None:
    backbone = load(family)
    text = "Ça coûte 12 €, naïve café\n\tin 東京 🙂"
    spelled = backbone.token_bytes()
    front, _ = backbone.wrapping(backbone.default_options())
    joined = b"".join(spelled[token] for token in backbone.encode_text(text)[len(front) :])
    assert joined.decode().strip(" ") == text
    assert all(isinstance(token, bytes) and token for token in spelled)


def test_wordpiece_tokens_show_where_words_begin(load: Callable[[str], TextBackbone]) -> None:
    backbone = load("bert")
    spelled = backbone.token_bytes()
    joined = b"".join(spelled[token] for token in backbone.encode_text("the harbours complain")[1:-1])
    assert joined == b" the harbours complain"
    assert spelled[backbone.tokenizer.cls_token_id] == b"[CLS]"


def test_the_vocabulary_covers_ids_that_only_the_model_has(load: Callable[[str], TextBackbone]) -> None:
    spelled = load("bert").token_bytes()
    n_known = len(load("bert").tokenizer)
    assert len(spelled) == tiny.VOCABULARY > n_known
    assert spelled[n_known] == f"<{n_known}>".encode()


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_the_unembedding_gives_the_models_logits_from_its_last_block(
    family: str, load: Callable[[str], TextBackbone]
) -> None:
    backbone = load(family)
    assert isinstance(backbone, CausalLM)
    (example, *_), _ = windows(backbone, [LONG], context_size=20)
    matrix, gain = backbone.unembedding()
    last = backbone.resolve(f"layers.{backbone.n_layers - 1}")
    with capture(backbone.model, [last]) as captured:
        logits = backbone.logits([example])[0]
    x = captured[last][0]
    if family in ("llama", "gemma"):
        normed = x / x.square().mean(-1, keepdim=True).sqrt() * gain
    else:
        normed = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, unbiased=False) * gain
    assert gain.shape == (backbone.d_model,)
    # The bias of a LayerNorm is zero in a fresh model; epsilon is all that differs.
    torch.testing.assert_close(normed @ matrix, logits, rtol=1e-2, atol=1e-3)


def test_the_gain_is_what_the_norm_multiplies_by_however_it_is_stored(load: Callable[[str], TextBackbone]) -> None:
    for family, stored in (("gemma", "model.norm"), ("gpt2", "transformer.ln_f")):
        backbone = load(family)
        assert isinstance(backbone, CausalLM)
        weight = backbone.model.get_submodule(stored).weight
        with torch.no_grad():
            weight.copy_(torch.linspace(0.5, 2, len(weight)))
        gain = backbone.unembedding()[1]
        torch.testing.assert_close(gain, weight + (family == "gemma"), rtol=1e-3, atol=1e-3)


def test_an_encoder_has_no_unembedding_but_has_logits(load: Callable[[str], TextBackbone]) -> None:
    backbone = load("bert")
    assert isinstance(backbone, EncoderLM)
    assert not hasattr(backbone, "unembedding")
    examples, _ = windows(backbone, [LONG, "the ferry sails at two and carries the post"], context_size=20)
    logits = backbone.logits(examples[-2:])
    assert logits.shape == (2, max(len(example.token_ids) for example in examples[-2:]), tiny.VOCABULARY)


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_logits_of_a_padded_batch_are_those_of_each_text(family: str, load: Callable[[str], TextBackbone]) -> None:
    backbone = load(family)
    examples, _ = windows(backbone, tiny.TEXT.split(". ")[:4], context_size=40)
    together = backbone.logits(examples)
    for row, example in enumerate(examples):
        alone = backbone.logits([example])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_generation_takes_the_most_likely_token_each_time(load: Callable[[str], TextBackbone]) -> None:
    backbone = load("llama")
    assert isinstance(backbone, CausalLM)
    ids = backbone.encode_text("The ferry")
    written: list[int] = []
    for _ in range(6):
        window = np.array([*ids, *written], dtype=np.int32)
        example = Example(document="", token_ids=window, kept=np.arange(len(window), dtype=np.int32))
        written.append(int(backbone.logits([example])[0, -1].argmax()))
    assert 0 not in written, "the seed makes the model stop at once; take another"
    assert backbone.generate("The ferry", n_tokens=6) == backbone.tokenizer.decode(written, skip_special_tokens=True)
    with pytest.raises(InputError, match="exceed the 64 positions"):
        backbone.generate("The ferry", n_tokens=80)


def test_batches_put_texts_of_like_length_together(load: Callable[[str], TextBackbone]) -> None:
    backbone = load("llama")
    examples, _ = windows(backbone, tiny.TEXT.split(". "), context_size=60)
    lengths = [
        [len(examples[index].token_ids) for index in indices]
        for indices, _ in backbone.activations(examples, ["layers.0"], batch_size=3)
    ]
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True)
    assert len(set(flat)) > 3


def test_a_gguf_file_gives_the_activations_of_the_folder_it_was_made_from(
    folder: Callable[[str], Path], load: Callable[[str], TextBackbone], tmp_path: Path
) -> None:
    spec = tiny.make_gguf(tmp_path / "tiny.gguf", folder("llama"))
    packed, plain = load_backbone(spec, device="cpu"), load("llama")
    assert isinstance(packed, CausalLM)
    assert packed.encode_text("The ferry sails") == plain.encode_text("The ferry sails")
    (example, *_), _ = windows(plain, [LONG], context_size=20)
    ((_, one),) = packed.activations([example], ["layers.1"], batch_size=1)
    ((_, other),) = plain.activations([example], ["layers.1"], batch_size=1)
    torch.testing.assert_close(one["layers.1"], other["layers.1"], rtol=1e-4, atol=1e-5)


def test_the_default_dtype_on_a_cpu_is_float32_whatever_is_stored(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    load_backbone(str(folder("llama")), dtype="bfloat16", device="cpu").model.save_pretrained(tmp_path)  # type: ignore[operator]
    for file in folder("llama").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_backbone(str(tmp_path), device="cpu").dtype == torch.float32
    with pytest.raises(ConfigError, match="dtype='float23'.*Closest: 'float32'"):
        load_backbone(str(tmp_path), dtype="float23")
    with pytest.raises(ConfigError, match="device='cuba' cannot be used"):
        load_backbone(str(tmp_path), device="cuba")


def test_a_checkpoint_without_a_head_has_hook_points_and_no_logits(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from saekit.backbones.third_party import import_transformers

    import_transformers().BertModel.from_pretrained(folder("bert")).save_pretrained(tmp_path)
    for file in folder("bert").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    backbone = load_backbone(str(tmp_path), device="cpu")
    assert isinstance(backbone, EncoderLM)
    examples, _ = windows(backbone, [LONG], context_size=20)
    assert sum(len(indices) for indices, _ in backbone.activations(examples, ["layers.1"], batch_size=4)) == len(
        examples
    )
    with pytest.raises(BackboneError, match="without a language modelling head"):
        backbone.logits(examples[:1])


def test_missing_weights_are_refused_and_not_made_up(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder("llama"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"1 weights .* missing .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_backbone(str(tmp_path), device="cpu")


def test_a_damaged_or_incomplete_folder_says_what_is_wrong(folder: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BackboneError, match=r"no config\.json.*holds notes\.txt"):
        load_backbone(str(tmp_path))
    shutil.copytree(folder("llama"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(BackboneError, match="its weights cannot be read"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(BackboneError, match="'resnet' model; saekit reads"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(BackboneError, match="encoder-decoder"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="its config cannot be read"):
        load_backbone(str(tmp_path))


def test_paths_that_are_not_there_or_not_models_say_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(BackboneError, match="does not exist. Closest in .*'checkpoint'"):
        load_backbone(str(tmp_path / "chekpoint"))
    with pytest.raises(BackboneError, match="missing.gguf does not exist"):
        load_backbone(str(tmp_path / "missing.gguf"))
    (tmp_path / "wrong.gguf").write_bytes(b"PK something else")
    with pytest.raises(BackboneError, match="not a GGUF file"):
        load_backbone(str(tmp_path / "wrong.gguf"))
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(BackboneError, match="is a file but not a .gguf one"):
        load_backbone(str(tmp_path / "model.bin"))


def test_an_unknown_name_says_what_was_tried_and_what_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("name does not resolve")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(BackboneError) as error:
        load_backbone("smolm2")
    assert "No model 'smolm2' was found" in str(error.value)
    assert "hub cannot be reached" in str(error.value)
    assert "'smollm2'" in str(error.value)
    with pytest.raises(BackboneError, match=r"'someone/some-model' was found.*give its folder, e\.g\. \./some-model"):
        load_backbone("someone/some-model")
    with pytest.raises(BackboneError, match="Closest: 'timm:vit_small_patch16_224'"):
        load_backbone("vit_small_patch16_224")
