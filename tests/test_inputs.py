"""Documents and images from every kind of source: order, labels, what is skipped and what is refused."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from saekit.errors import InputError
from saekit.inputs import ImageInput, SkipLog, SourceSize, measure_source, read_documents, read_images


def write_png(path: Path, colour: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path.read_bytes()


def test_a_folder_of_texts_is_read_in_order_with_folders_as_labels(tmp_path: Path) -> None:
    for name, text in {"b/2.txt": "two", "a/1.txt": "one", "a/deep/3.txt": "three", "0.txt": "loose"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("never")
    (tmp_path / "a" / "notes.pdf").write_bytes(b"%PDF")
    found = [(document.id, document.text, document.label) for document in read_documents(tmp_path)]
    assert found == [
        ("0.txt", "loose", None),
        ("a/1.txt", "one", "a"),
        ("a/deep/3.txt", "three", "a/deep"),
        ("b/2.txt", "two", "b"),
    ]


def test_a_glob_chooses_files(tmp_path: Path) -> None:
    for name in ("a.py", "b.md", "sub/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    assert [document.id for document in read_documents(tmp_path, glob="*.py")] == ["a.py", "sub/c.py"]
    with pytest.raises(InputError, match=r"no file that matches '\*.rst'"):
        list(read_documents(tmp_path, glob="*.rst"))


def test_texts_that_are_blank_or_not_utf8_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfmarked")
    log = SkipLog()
    assert [document.text for document in read_documents(tmp_path, skipped=log)] == ["marked"]
    assert log.to_json() == {
        "count": 2,
        "reasons": {"blank document": 1, "not valid UTF-8": 1},
        "first": [["bad.txt", "not valid UTF-8"], ["blank.txt", "blank document"]],
    }


def test_a_source_with_nothing_readable_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no readable document. 1: not valid UTF-8"):
        list(read_documents(tmp_path))


def test_a_missing_source_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("{}")
    with pytest.raises(InputError, match="corpsu.jsonl does not exist. Closest there: 'corpus.jsonl'"):
        list(read_documents(tmp_path / "corpsu.jsonl"))
    with pytest.raises(InputError, match="nowhere does not exist either"):
        list(read_documents(tmp_path / "nowhere" / "corpus.jsonl"))


def test_jsonl_has_text_and_label_and_line_numbers(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "one", "label": "a"}\n\n{"text": "three", "label": 3}\n{"text": null}\n')
    log = SkipLog()
    found = [(document.id, document.text, document.label) for document in read_documents(file, skipped=log)]
    assert found == [("corpus.jsonl:1", "one", "a"), ("corpus.jsonl:3", "three", "3")]
    assert log.first == [("corpus.jsonl:4", "blank document")]


def test_wrong_jsonl_lines_are_all_named(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "fine"}\n{oops\n[1, 2]\n{"txt": "x"}\n{"text": 7}\n{"text": "fine too"}\n')
    with pytest.raises(InputError) as caught:
        list(read_documents(file))
    message = str(caught.value)
    assert "4 unusable lines" in message
    for part in (
        "line 2 is not JSON",
        "line 3 is a JSON list",
        "line 4 has no field 'text' (it has 'txt'; closest: 'txt'",
        "line 5 has a int as 'text'",
    ):
        assert part in message


def test_a_jsonl_line_that_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(b'{"text": "caf\xe9"}\n{"text": "fine"}\n')
    log = SkipLog()
    assert [document.text for document in read_documents(file, skipped=log)] == ["fine"]
    assert log.first == [("corpus.jsonl:1", "not valid UTF-8")]


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"body": ["one", "two"], "topic": ["x", "y"], "unused": [1, 2]})
    parquet.write_table(table, tmp_path / "corpus.parquet")
    documents = list(read_documents(tmp_path, text_field="body", label_field="topic"))
    assert [(document.id, document.text, document.label) for document in documents] == [
        ("corpus.parquet:1", "one", "x"),
        ("corpus.parquet:2", "two", "y"),
    ]
    assert measure_source(tmp_path) == SourceSize(n_inputs=2)
    with pytest.raises(InputError, match=r"has no field 'text' \(it has 'body', 'topic', 'unused'"):
        list(read_documents(tmp_path))
    (tmp_path / "corpus.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="is not a Parquet file"):
        list(read_documents(tmp_path))


def test_saved_datasets_keep_label_names_and_images_are_opened_late(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["cat", "dog"])
    texts = datasets.Dataset.from_dict(
        {"text": ["one", "two"], "label": [1, 0]},
        features=datasets.Features({"text": datasets.Value("string"), "label": labels}),
    )
    texts.save_to_disk(tmp_path / "texts")
    found = [(document.id, document.text, document.label) for document in read_documents(tmp_path / "texts")]
    assert found == [("0", "one", "dog"), ("1", "two", "cat")]
    datasets.DatasetDict({"train": texts, "test": texts}).save_to_disk(tmp_path / "splits")
    assert [document.id for document in read_documents(tmp_path / "splits")] == [
        "test/0",
        "test/1",
        "train/0",
        "train/1",
    ]
    assert measure_source(tmp_path / "splits") == SourceSize(n_inputs=4)

    good = write_png(tmp_path / "good.png")
    images = datasets.Dataset.from_dict({"image": [{"bytes": good}, {"bytes": b"corrupt"}], "label": [0, 1]})
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    images.cast(features).save_to_disk(tmp_path / "images")
    first, second = read_images(tmp_path / "images")
    assert (first.label, second.label) == ("cat", "dog")
    assert first.open().size == (8, 6)
    with pytest.raises(InputError, match="1 is not a readable image"):
        second.open()
    with pytest.raises(InputError, match="no column 'picture'"):
        list(read_images(tmp_path / "images", image_field="picture"))


def test_an_unreachable_hub_dataset_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(name: str, split: str, streaming: bool) -> None:
        assert (name, split, streaming) == ("owner/words", "test", True)
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=r"'owner/words' \(split 'test'\) cannot be opened: no route"):
        list(read_documents("hf:owner/words:test"))
    assert measure_source("hf:owner/words:test") == SourceSize()


def test_a_streamed_hub_dataset_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, streaming: rows)
    assert [(document.id, document.text) for document in read_documents("hf:words")] == [("0", "one"), ("1", "two")]


def test_images_have_folder_labels_and_captions(tmp_path: Path) -> None:
    write_png(tmp_path / "animals" / "cat.png")
    write_png(tmp_path / "animals" / "big" / "cow.PNG")
    write_png(tmp_path / "loose.png")
    (tmp_path / "animals" / "cat.txt").write_text("A cat.\nSecond line.\n")
    images = list(read_images(tmp_path))
    assert [(image.id, image.label, image.caption) for image in images] == [
        ("animals/big/cow.PNG", "animals/big", None),
        ("animals/cat.png", "animals", "A cat."),
        ("loose.png", None, None),
    ]
    assert measure_source(tmp_path, images=True) == SourceSize(n_inputs=3)
    assert next(read_images(tmp_path / "loose.png")).id == "loose.png"


@pytest.mark.parametrize("damage", [b"", b"no image at all", "truncated"])
def test_a_corrupt_image_says_so_when_opened(tmp_path: Path, damage: bytes | str) -> None:
    whole = write_png(tmp_path / "x.png", size=(64, 64))
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2] if isinstance(damage, str) else damage)
    with pytest.raises(InputError, match="x.png is not a readable image"):
        next(read_images(tmp_path)).open()


def test_image_bytes_and_pillow_images_open_alike(tmp_path: Path) -> None:
    data = write_png(tmp_path / "x.png")
    for load in (data, tmp_path / "x.png", str(tmp_path / "x.png"), Image.open(io.BytesIO(data))):
        assert ImageInput(id="x", load=load).open().getpixel((0, 0)) == (255, 0, 0)


def test_an_empty_image_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file ending in .png"):
        list(read_images(tmp_path))


def test_the_size_of_a_source_is_known_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("12345")
    assert measure_source(tmp_path) == SourceSize(n_inputs=1, n_bytes=5)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "x"}))
    assert measure_source(tmp_path) == SourceSize(n_inputs=None, n_bytes=5 + 13)


def test_a_skip_log_keeps_counts_and_the_first_twenty() -> None:
    log, other = SkipLog(), SkipLog()
    for i in range(15):
        log.add(f"a{i}", "bad")
        other.add(f"b{i}", "worse")
    log.merge(other)
    assert (log.count, log.reasons, len(log.first)) == (30, {"bad": 15, "worse": 15}, 20)
    assert log.first[-1] == ("b4", "worse")
    assert SkipLog.from_json(log.to_json()).to_json() == log.to_json()
    taken = log.take()
    assert (taken.count, log.count, log.first) == (30, 0, [])
