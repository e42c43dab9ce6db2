"""Labels, tags and notes: kept on every crash, shared between writers."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saekit.errors import FeatureIndexError
from saekit.index import Annotation, Annotations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "meta.json").write_text('{"d_sae": 100}')
    return tmp_path


def test_what_is_set_is_there_after_a_restart(folder: Path) -> None:
    first = Annotations(folder)
    assert first.get(17) == Annotation()
    first.set(17, label=" river banks ", tags=["place", "water", "place", " "], note="not the\nmoney kind <b>")
    first.set(17, tags=["place"])
    found = Annotations(folder).get(17)
    assert (found.label, found.tags, found.note) == ("river banks", ("place",), "not the\nmoney kind <b>")
    assert found.time.endswith("+00:00")


def test_an_empty_value_clears_its_field_and_an_emptied_feature_leaves_the_list(folder: Path) -> None:
    annotations = Annotations(folder)
    annotations.set(3, label="a", note="b")
    annotations.set(4, label="c")
    annotations.set(3, label="")
    assert annotations.get(3).note == "b"
    annotations.set(3, note="")
    assert list(annotations.all()) == [4]


def test_setting_nothing_writes_nothing(folder: Path) -> None:
    Annotations(folder).set(3)
    assert not (folder / "annotations.jsonl").exists()


def test_a_torn_last_line_is_ignored_and_repaired_by_the_next_write(folder: Path) -> None:
    annotations = Annotations(folder)
    annotations.set(1, label="one")
    with open(annotations.path, "ab") as file:
        file.write(b'{"time": "2026", "feature": 2, "lab')
    assert list(Annotations(folder).all()) == [1]
    annotations.set(3, label="three")
    assert list(Annotations(folder).all()) == [1, 3]
    assert [json.loads(line)["feature"] for line in annotations.path.read_text().splitlines()] == [1, 3]


def test_a_whole_last_line_without_its_newline_is_kept(folder: Path) -> None:
    annotations = Annotations(folder)
    annotations.set(1, label="one")
    annotations.path.write_bytes(annotations.path.read_bytes().rstrip(b"\n"))
    annotations.set(2, label="two")
    assert {feature: found.label for feature, found in Annotations(folder).all().items()} == {1: "one", 2: "two"}


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(folder: Path) -> None:
    annotations = Annotations(folder)
    annotations.path.write_text('{"feature": 1, "label": "a"}\nnot json\n{"feature": 2, "label": "b"}\n')
    with pytest.raises(FeatureIndexError, match="Line 2 of"):
        annotations.all()


def test_readers_see_what_other_writers_added(folder: Path) -> None:
    reader, writer = Annotations(folder), Annotations(folder)
    assert reader.all() == {}
    writer.set(5, label="new")
    assert reader.get(5).label == "new"


WRITER = """
import sys
from saekit.index import Annotations
annotations = Annotations(sys.argv[1])
print("ready", flush=True)
for i in range(int(sys.argv[3])):
    annotations.set(int(sys.argv[2]), label=f"label {i} " + "x" * 3000, tags=["a", "b"])
"""


def start_writer(folder: Path, feature: int, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(feature), str(n)], stdout=subprocess.PIPE, text=True
    )


def test_two_writers_lose_nothing(folder: Path) -> None:
    writers = [start_writer(folder, feature, 30) for feature in (1, 2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    lines = [json.loads(line) for line in (folder / "annotations.jsonl").read_text().splitlines()]
    assert len(lines) == 60
    assert {feature: found.label[:8] for feature, found in Annotations(folder).all().items()} == {
        1: "label 29",
        2: "label 29",
    }


def test_a_killed_writer_leaves_every_finished_change(folder: Path) -> None:
    writer = start_writer(folder, 7, 100_000)
    assert writer.stdout is not None
    writer.stdout.readline()
    while len(Annotations(folder).all()) == 0:
        pass
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    Annotations(folder).set(8, label="after")
    found = Annotations(folder).all()
    assert found[7].label.startswith("label ")
    assert found[8].label == "after"


def test_search_finds_every_word_in_label_tags_or_note(folder: Path) -> None:
    annotations = Annotations(folder)
    annotations.set(1, label="River Bank", tags=["water"])
    annotations.set(2, label="bank", note="money, not a RIVER")
    annotations.set(3, label="ball")
    assert annotations.search("bank river") == [1, 2]
    assert annotations.search("WATER") == [1]
    assert annotations.search("sea") == []


def test_the_csv_reads_back_with_awkward_text(folder: Path) -> None:
    annotations = Annotations(folder)
    annotations.set(2, label='says "hi", twice', tags=["x", "y"], note="line\nbreak 🙂")
    rows = list(csv.DictReader(io.StringIO(annotations.export_csv())))
    assert len(rows) == 1
    assert (rows[0]["feature"], rows[0]["label"], rows[0]["tags"]) == ("2", 'says "hi", twice', "x;y")
    assert rows[0]["note"] == "line\nbreak 🙂"


@pytest.mark.parametrize("feature", [-1, 100])
def test_a_feature_out_of_range_is_refused(folder: Path, feature: int) -> None:
    with pytest.raises(FeatureIndexError, match="features 0 to 99"):
        Annotations(folder).get(feature)
    with pytest.raises(FeatureIndexError, match="features 0 to 99"):
        Annotations(folder).set(feature, label="x")


def test_a_log_that_cannot_be_written_is_an_error_that_says_where(folder: Path) -> None:
    (folder / "annotations.jsonl").mkdir()
    with pytest.raises(FeatureIndexError, match=r"could not be saved in .*annotations.jsonl"):
        Annotations(folder)._append({"feature": 1})
