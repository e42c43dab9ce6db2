"""The extract verb: what lands in the store, what is refused, and that a second run goes on with the same bytes."""

import errno
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from fake_backbones import POINTS, FakeImages, FakeText
from PIL import Image

from saekit.backbones import TextWindows, load_backbone
from saekit.cli import main
from saekit.errors import ConfigError, InputError, StoreError
from saekit.inputs import Document, SkipLog, SourceSize, read_documents, read_images
from saekit.jobs import estimate as estimate_module
from saekit.jobs.extract import ExtractConfig, describe_store, extract, run
from saekit.store import ActivationStore

SETTINGS = {"hook_points": POINTS, "batch_size": 3, "shard_rows": 60, "progress": False}


def documents(n: int = 20) -> list[Document]:
    return [
        Document(id=f"doc{i}", text=f"text number {i} " * (1 + i % 4), label="even" if i % 2 == 0 else None)
        for i in range(n)
    ]


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def image_folder(path: Path, n: int = 7) -> Path:
    random = np.random.default_rng(0)
    for i in range(n):
        folder = path / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 12, 3)).astype(np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}\n")
    return path


def test_every_row_is_the_activation_of_its_example_and_position(tmp_path: Path) -> None:
    backbone = FakeText()
    store = extract(backbone, documents(), out=tmp_path / "s", storage_dtype="fp32", **SETTINGS)
    options = backbone.default_options()
    examples = list(backbone.examples(documents(), options, SkipLog()))
    assert store.n_examples == len(examples) > 20
    expected = np.concatenate([backbone.keys(example) for example in examples])
    for point in POINTS:
        assert torch.equal(store.rows(0, store.n_rows, point), backbone.rows(expected, point))
    assert store.row_position.tolist() == [position for example in examples for position in example.kept]
    assert store.row_example.tolist() == [i for i, example in enumerate(examples) for _ in example.kept]
    for i, example in enumerate(examples):
        stored = store.examples[i]
        assert (stored.document, stored.label, stored.start) == (example.document, example.label, example.start)
        assert np.array_equal(stored.token_ids, example.token_ids)
    assert len(store.meta["shards"]) > 3


def test_images_keep_labels_captions_geometry_and_thumbnails(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    store = extract(FakeImages(), source, out=tmp_path / "s", **{**SETTINGS, "shard_rows": 8})
    table = store.examples
    assert table.kind == "image"
    assert store.n_rows == 7 * 4
    assert table.label_names == ["cats", "dogs"]
    assert table.documents == ["cats/1.png", "cats/3.png", "cats/5.png", *(f"dogs/{i}.png" for i in (0, 2, 4, 6))]
    assert table.caption(0) == "picture 1"
    assert table.thumbnail(2) == b"thumbnail of cats/5.png"
    assert table.geometry(0).crop == (0.0, 0.0, 12.0, 9.0)


def test_what_is_skipped_is_counted_in_the_store(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images")
    (source / "cats" / "3.png").write_bytes(b"no image")
    store = extract(FakeImages(), source, out=tmp_path / "s", **SETTINGS)
    assert store.meta["skipped"] == {
        "count": 1,
        "reasons": {"not a readable image": 1},
        "first": [["cats/3.png", "not a readable image"]],
    }
    assert store.n_examples == 6
    assert "1 skipped" in describe_store(store)


def test_the_token_limit_ends_after_a_whole_example(tmp_path: Path) -> None:
    store = extract(FakeText(), documents(), out=tmp_path / "s", n_tokens=100, **SETTINGS)
    assert 100 <= store.n_rows < 116
    everything = extract(FakeText(), documents(), out=tmp_path / "all", **SETTINGS)
    for point in POINTS:
        assert torch.equal(store.rows(0, store.n_rows, point), everything.rows(0, store.n_rows, point))


def test_strings_become_documents(tmp_path: Path) -> None:
    store = extract(FakeText(), ["one short text", "another text"], out=tmp_path / "s", **SETTINGS)
    assert store.examples.documents == ["000000", "000001"]
    assert store.examples.token_text(int(store.examples.token_ids(0)[1])) == "o"


class Stops(Exception):
    pass


class StopsAfter(FakeText):
    def __init__(self, n_batches: int) -> None:
        super().__init__()
        self.n_left = n_batches

    def rows(self, keys: np.ndarray, point: str) -> torch.Tensor:
        self.n_left -= point == POINTS[0]
        if self.n_left < 0:
            raise Stops
        return super().rows(keys, point)


@pytest.mark.parametrize("n_tokens", [None, 330])
@pytest.mark.parametrize("n_batches", [0, 1, 4, 6])
def test_an_interrupted_extraction_goes_on_with_the_same_bytes(
    tmp_path: Path, n_batches: int, n_tokens: int | None
) -> None:
    inputs = [*documents(), Document(id="short", text="x"), *documents(30)[20:], Document(id="end", text="")]
    whole = FakeText()
    extract(whole, inputs, out=tmp_path / "whole", n_tokens=n_tokens, **SETTINGS)
    with pytest.raises(Stops):
        extract(StopsAfter(n_batches), inputs, out=tmp_path / "cut", n_tokens=n_tokens, **SETTINGS)
    with pytest.raises(StoreError, match="unfinished extraction"):
        ActivationStore.open(tmp_path / "cut")
    second = FakeText()
    extract(second, inputs, out=tmp_path / "cut", n_tokens=n_tokens, **SETTINGS)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
    assert second.n_batches <= whole.n_batches
    if n_batches == 6:
        assert second.n_batches < whole.n_batches


def test_going_on_does_not_prepare_finished_inputs_again(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "images", 20)

    class Broken(FakeImages):
        def rows(self, keys: np.ndarray, point: str) -> torch.Tensor:
            if self.n_batches > 5:
                raise Stops
            return super().rows(keys, point)

    settings = {**SETTINGS, "shard_rows": 12}
    with pytest.raises(Stops):
        extract(Broken(), source, out=tmp_path / "s", **settings)
    (source / "cats" / "1.png").write_bytes(b"can no longer be opened")
    store = extract(FakeImages(), source, out=tmp_path / "s", **settings)
    assert store.n_examples == 20
    assert store.meta["skipped"]["count"] == 0


def test_a_changed_source_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(Stops):
        extract(StopsAfter(8), documents(), out=tmp_path / "s", **SETTINGS)
    changed = [Document(id="doc0", text="something else entirely"), *documents()[1:]]
    with pytest.raises(StoreError, match="source has changed"):
        extract(FakeText(), changed, out=tmp_path / "s", **SETTINGS)


def test_a_source_that_has_grown_is_not_taken_for_the_one_in_the_store(tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    source.mkdir()
    for i in range(4):
        (source / f"{i}.txt").write_text(f"text number {i} " * 3)
    extract(FakeText(), source, out=tmp_path / "s", **SETTINGS)
    (source / "4.txt").write_text("one more of the texts")
    with pytest.raises(StoreError, match=r"source_size.n_inputs: 4 there, 5 now"):
        extract(FakeText(), source, out=tmp_path / "s", **SETTINGS)


def test_two_spellings_of_one_hook_point_are_stored_once(tmp_path: Path) -> None:
    backbone = load_backbone(tiny.make("llama", tmp_path / "model"))
    points = ["layers.1", "layers.1:output", "model.layers.1"]
    store = extract(backbone, ["the cat sat on the mat " * 4], hook_points=points, out=tmp_path / "s", progress=False)
    assert store.hook_points == ("layers.1",)


def test_other_settings_are_refused_field_by_field(tmp_path: Path) -> None:
    with pytest.raises(Stops):
        extract(StopsAfter(8), documents(), out=tmp_path / "s", **SETTINGS)
    other = {**SETTINGS, "batch_size": 4, "options": TextWindows(context_size=12, min_tokens=2)}
    with pytest.raises(StoreError, match=r"batch_size: 3 there, 4 now; options.context_size: 16 there, 12 now"):
        extract(FakeText(), documents(), out=tmp_path / "s", **other)


def test_a_finished_store_is_opened_and_not_made_again(tmp_path: Path) -> None:
    extract(FakeText(), documents(), out=tmp_path / "s", **SETTINGS)
    before = tree(tmp_path / "s")
    second = FakeText()
    extract(second, documents(), out=tmp_path / "s", **SETTINGS)
    assert second.n_batches == 0
    assert tree(tmp_path / "s") == before
    with pytest.raises(StoreError, match="n_tokens: None there, 10 now"):
        extract(FakeText(), documents(), out=tmp_path / "s", n_tokens=10, **SETTINGS)


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match=r"holds other files \(thesis.tex\)"):
        extract(FakeText(), documents(), out=tmp_path, **SETTINGS)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_two_extractions_into_one_directory_are_refused(tmp_path: Path) -> None:
    class Rival(FakeText):
        def rows(self, keys: np.ndarray, point: str) -> torch.Tensor:
            with pytest.raises(StoreError, match="Another process is writing"):
                extract(FakeText(), documents(), out=tmp_path / "s", **SETTINGS)
            return super().rows(keys, point)

    assert extract(Rival(), documents(), out=tmp_path / "s", **SETTINGS).n_examples > 20


def test_a_nan_names_hook_point_example_and_position_and_leaves_nothing(tmp_path: Path) -> None:
    inputs = [Document(id="fine", text="all is well"), Document(id="bad", text="a POISON pill")]
    with pytest.raises(InputError, match=r"layers.0 is nan in dimension 0 \(example 'bad', position 3\)"):
        extract(FakeText(), inputs, out=tmp_path / "s", **SETTINGS)
    assert not (tmp_path / "s").exists()


def test_an_overflow_names_the_value_and_the_fix(tmp_path: Path) -> None:
    inputs = [Document(id="fine", text="all is well"), Document(id="loud", text="a LOUD text")]
    with pytest.raises(InputError, match=r"layers.0 has the value 1e\+06 \(example 'loud', position 2\).*bf16"):
        extract(FakeText(), inputs, out=tmp_path / "s", storage_dtype="fp16", max_norm_ratio=0.0, **SETTINGS)
    settings = {**SETTINGS, "max_norm_ratio": 0.0}
    assert extract(FakeText(), inputs, out=tmp_path / "s", storage_dtype="bf16", **settings).n_examples == 2


def test_no_usable_example_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No usable example in the source: skipped too short \(2\)"):
        extract(FakeText(), ["a", "b"], out=tmp_path / "s", **SETTINGS)
    with pytest.raises(InputError, match="No usable example"):
        extract(FakeText(), [], out=tmp_path / "s", **SETTINGS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file ending in"):
        extract(FakeText(), tmp_path / "empty", out=tmp_path / "s", **SETTINGS)
    assert not (tmp_path / "s").exists()


def test_inputs_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Input 1 is a int; expected a str or a Document"):
        extract(FakeText(), ["good text", 7], out=tmp_path / "s", **SETTINGS)


def test_a_disk_that_is_too_small_is_refused_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "free_bytes", lambda path: 10_000)
    with pytest.raises(StoreError, match=r"needs about [\d.]+ kB more and its disk has 10\.0 kB free"):
        extract(FakeText(), documents(), out=tmp_path / "s", **SETTINGS)
    assert not (tmp_path / "s").exists()


def test_the_estimate_is_near_the_truth(tmp_path: Path) -> None:
    backbone = FakeText()
    store = extract(backbone, documents(60), out=tmp_path / "s", **SETTINGS)
    sample = [store.examples[i] for i in range(20)]
    n_bytes = sum(len(document.text) for document in documents(60))
    expected = estimate_module.estimate(
        sample, SourceSize(n_bytes=n_bytes), None, {"layers.0": 8}, "bf16", backbone.token_bytes()
    )
    assert expected.n_rows == pytest.approx(store.n_rows, rel=0.1)
    assert expected.n_examples == pytest.approx(store.n_examples, rel=0.1)
    by_number = estimate_module.estimate(sample, SourceSize(n_inputs=60), None, {"layers.0": 8}, "bf16", None)
    assert by_number.n_rows == pytest.approx(store.n_rows, rel=0.2)
    limited = estimate_module.estimate(sample, SourceSize(), 123, {"layers.0": 8}, "bf16", None)
    assert limited.n_rows == 123
    assert estimate_module.estimate(sample, SourceSize(), None, {"layers.0": 8}, "bf16", None).n_bytes is None


def test_the_norm_report_finds_the_huge_rows(tmp_path: Path) -> None:
    inputs = [*documents(), Document(id="loud", text="a LOUD text")]
    store = extract(FakeText(), inputs, out=tmp_path / "s", max_norm_ratio=0.0, **SETTINGS)
    assert store.meta["dropped"] is None
    norms = store.meta["hook_points"]["layers.0"]["norms"]
    rows = store.rows(0, store.n_rows, "layers.0").double().norm(dim=1)
    assert norms["median"] == pytest.approx(float(rows.median()), rel=0.05)
    assert norms["n_high"] == 1
    assert norms["high_by_position"] == [[2, 1]]
    found = norms["first_high"][0]
    assert store.examples[found["example"]].document == "loud"
    assert float(rows[found["row"]]) == pytest.approx(1e6, rel=0.01)
    assert "1 rows have more than 10 times the median norm" in describe_store(store)


def test_rows_of_huge_norm_are_left_out_and_counted(tmp_path: Path) -> None:
    inputs = [*documents(), Document(id="loud", text="a LOUD text"), *documents(3)]
    everything = extract(FakeText(), inputs, out=tmp_path / "all", max_norm_ratio=0.0, **SETTINGS)
    store = extract(FakeText(), inputs, out=tmp_path / "s", **SETTINGS)
    assert store.n_rows == everything.n_rows - 1
    assert store.n_examples == everything.n_examples
    loud = next(i for i in range(store.n_examples) if store.examples[i].document == "loud")
    assert 2 not in store.examples[loud].kept
    assert store.meta["dropped"]["n_rows"] == 1
    assert store.meta["dropped"]["by_position"] == [[2, 1]]
    assert set(store.meta["dropped"]["limits"]) == set(POINTS)
    assert "left out 1 rows above 10 times the median norm, at positions 2 (1)" in describe_store(store)
    for point in POINTS:
        assert float(store.rows(0, store.n_rows, point).double().norm(dim=1).max()) < 1e5
    rows = everything.rows(0, everything.n_rows, POINTS[0])
    is_loud = (everything.row_example == loud) & (everything.row_position == 2)
    assert torch.equal(store.rows(0, store.n_rows, POINTS[0]), rows[torch.from_numpy(~is_loud)])


def test_a_sample_is_a_seeded_shuffle_of_the_inputs(tmp_path: Path) -> None:
    def order(name: str, seed: int | None) -> list[str]:
        return extract(FakeText(), documents(), out=tmp_path / name, sample_seed=seed, **SETTINGS).examples.documents

    assert order("a", None) == sorted(order("b", 1), key=lambda id: int(id[3:]))
    assert order("b2", 1) == order("b3", 1) != order("c", 2)


def test_a_reader_that_fails_midway_leaves_the_whole_shards(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document number {i} is fine"}) for i in range(40)]
    source = tmp_path / "corpus.jsonl"
    source.write_text("\n".join([*lines, "{oops", *lines]))
    with pytest.raises(InputError, match="1 unusable line: line 41 is not JSON"):
        extract(FakeText(), read_documents(source), out=tmp_path / "s", source="corpus", **SETTINGS)
    assert (tmp_path / "s" / "shards" / "00000" / "manifest.json").exists()
    source.write_text("\n".join([*lines, *lines]))
    store = extract(FakeText(), read_documents(source), out=tmp_path / "s", source="corpus", **SETTINGS)
    assert len(store.examples.documents) == 80


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        extract(FakeText(), documents(), out=tmp_path / "s", hook_points=POINTS, batch_size=0)
    with pytest.raises(ConfigError, match="storage dtype 'bf61' is none of"):
        extract(FakeText(), documents(), out=tmp_path / "s", hook_points=POINTS, storage_dtype="bf61")
    with pytest.raises(ConfigError, match="No hook point given"):
        extract(FakeText(), documents(), out=tmp_path / "s", hook_points=())


def test_an_iterator_is_read_once_and_lazily(tmp_path: Path) -> None:
    n_read = 0

    def endless() -> Iterator[Document]:
        nonlocal n_read
        while True:
            n_read += 1
            yield Document(id=str(n_read), text="as many words as anybody wants")

    store = extract(FakeText(), endless(), out=tmp_path / "s", n_tokens=200, **SETTINGS)
    assert store.n_rows >= 200
    assert n_read < 500


def test_a_disk_that_fills_up_leaves_whole_shards_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract(FakeText(), documents(), out=tmp_path / "whole", **SETTINGS)
    n_left, write = 12, os.pwrite

    def write_while_there_is_room(*arguments: Any) -> int:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write_while_there_is_room)
        with pytest.raises(StoreError, match=r"disk that holds .* is full. Its [1-9] finished shards are whole"):
            extract(FakeText(), documents(), out=tmp_path / "s", **SETTINGS)
    assert not list((tmp_path / "s" / "shards").glob(".*"))
    extract(FakeText(), documents(), out=tmp_path / "s", **SETTINGS)
    assert tree(tmp_path / "s") == tree(whole.path)


def test_a_backbone_that_gives_too_few_rows_is_refused(tmp_path: Path) -> None:
    class Forgetful(FakeText):
        def activations(self, *arguments: Any, **settings: Any) -> Iterator[Any]:
            yield from itertools.islice(super().activations(*arguments, **settings), 1)

    with pytest.raises(StoreError, match=r"gave \d+ of the \d+ rows of shard 0"):
        extract(Forgetful(), documents(), out=tmp_path / "s", **SETTINGS)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_job_extracts_from_a_real_model_and_prints_what_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model = tiny.make("llama" if kind == "text" else "dinov2", tmp_path / "model")
    if kind == "text":
        source = tmp_path / "corpus"
        for i in range(6):
            (source / str(i % 2)).mkdir(parents=True, exist_ok=True)
            (source / str(i % 2) / f"{i}.txt").write_text(f"the cat number {i} sat on a mat and looked at the dog " * 3)
        (source / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    else:
        source = image_folder(tmp_path / "corpus")
        (source / "bad.png").write_bytes(b"corrupt")
    config = ExtractConfig(
        model=model,
        source=str(source),
        out=tmp_path / "s",
        hook_points=("layers.0", "layers.1.mlp"),
        device="cpu",
        storage_dtype="fp32",
        batch_size=4,
        verify=True,
        text=TextWindows(context_size=24),
    )
    assert run(config) == tmp_path / "s"
    printed = capsys.readouterr().out
    store = ActivationStore.open(tmp_path / "s")
    assert f"{tmp_path / 's'}: {store.n_rows:,} rows" in printed
    assert "1 skipped" in printed
    assert "skipped bad." in printed
    backbone = load_backbone(model, device="cpu")
    examples = list(
        backbone.examples(
            read_documents(source) if kind == "text" else read_images(source),
            config.text if kind == "text" else config.images,
            SkipLog(),
        )
    )
    assert [example.document for example in examples] == [e.document for e in store.examples]
    for indices, rows in backbone.activations(examples, store.hook_points, 1):
        for point in store.hook_points:
            first, last = store.examples.row_offsets[indices[0] : indices[0] + 2]
            assert torch.allclose(store.rows(int(first), int(last), point), rows[point], atol=1e-5)


SENTENCES = [f"the cat number {i} sat on a mat and looked at the dog " * 2 for i in range(5)]


@pytest.mark.parametrize("layout", ["jsonl", "parquet", "dataset", "images"])
def test_the_command_line_takes_every_kind_of_source(layout: str, tmp_path: Path) -> None:
    import datasets
    import pyarrow
    from pyarrow import parquet

    source, labels = tmp_path / "source", ["even", "odd", "even", "odd", "even"]
    source.mkdir()
    if layout == "jsonl":
        lines = [json.dumps({"body": text, "topic": label}) for text, label in zip(SENTENCES, labels, strict=True)]
        (source / "a.jsonl").write_text("\n".join(lines))
    elif layout == "parquet":
        parquet.write_table(pyarrow.table({"body": SENTENCES, "topic": labels}), source / "a.parquet")
    elif layout == "dataset":
        columns = {"body": SENTENCES, "topic": [int(label == "odd") for label in labels]}
        classes = datasets.Features(
            {"body": datasets.Value("string"), "topic": datasets.ClassLabel(names=["even", "odd"])}
        )
        datasets.Dataset.from_dict(columns, features=classes).save_to_disk(str(source))
    else:
        pictures = [Image.open(path).copy() for path in sorted(image_folder(tmp_path / "p", 5).rglob("*.png"))]
        classes = datasets.Features({"image": datasets.Image(), "topic": datasets.ClassLabel(names=["even", "odd"])})
        columns = {"image": pictures, "topic": [int(label == "odd") for label in labels]}
        datasets.Dataset.from_dict(columns, features=classes).save_to_disk(str(source))
    model = tiny.make("dinov2" if layout == "images" else "llama", tmp_path / "model")
    words = f"extract --model {model} --source {source} --out {tmp_path / 's'} --hook-points layers.1 --device cpu"
    options = "--text-field body --label-field topic --text.context-size 32"
    assert main([*words.split(), *options.split()]) == 0
    store = ActivationStore.open(tmp_path / "s", verify=True)
    by_document = {example.document: example.label for example in store.examples}
    assert list(by_document.values()) == labels
    assert store.meta["skipped"]["count"] == 0
