"""The store on disk: what is written is read back, damage is named, and the normative document is enough to read it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import GRID, VOCABULARY, make_tiny_store

from saekit.errors import HookPointError, InputError, StoreError
from saekit.store import ActivationStore, Example, ExampleTable, ExampleTableWriter, StoreWriter, TokenLayout
from saekit.store.background import BackgroundTasks, read_ahead
from saekit.store.moments import Moments, merge_moments, norm_report, row_statistics

TWO = ("layers.1", "layers.0:input")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_rows_come_back_across_shard_borders(tmp_path: Path, dtype: str) -> None:
    rows = np.random.default_rng(1).standard_normal((24 * 20, 16)).astype(np.float32)
    store = make_tiny_store(tmp_path / "s", kind="image", rows=rows, dtype=dtype)
    expected = torch.from_numpy(rows).to(store.dtype)
    assert len(store.meta["shards"]) == 3
    assert torch.equal(store.rows(0, store.n_rows), expected)
    assert torch.equal(store.rows(195, 405), expected[195:405])
    assert torch.equal(store.rows(-5, 10_000), expected[-5:])
    assert store.rows(7, 7).shape == (0, 16)
    picked = np.array([401, 3, 3, 199, 200])
    assert torch.equal(store.take(picked), expected[torch.from_numpy(picked)])


def test_moments_are_those_of_the_stored_rows(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "s", hook_points=TWO)
    for point in TWO:
        rows = store.rows(0, store.n_rows, point).double().numpy()
        mean, spread = store.moments(point)
        assert np.allclose(mean, rows.mean(0), rtol=0, atol=1e-13)
        assert spread == pytest.approx(((rows - rows.mean(0)) ** 2).sum(1).mean(), rel=1e-12)


def test_merged_moments_do_not_cancel() -> None:
    rows = np.random.default_rng(0).standard_normal((999, 5)) + 1e8
    parts = [Moments(len(p), p.mean(0), float(((p - p.mean(0)) ** 2).sum())) for p in np.split(rows, [1, 10, 600])]
    merged = merge_moments(parts)
    assert merged.n == 999
    assert np.allclose(merged.mean, rows.mean(0), rtol=1e-15)
    assert merged.mean_squared_norm_about_mean == pytest.approx(((rows - rows.mean(0)) ** 2).sum(1).mean(), rel=1e-7)


def test_parts_without_rows_change_no_moments() -> None:
    empty, part = Moments(0, np.zeros(2), 0.0), Moments(3, np.array([1.0, 2.0]), 5.0)
    for order in ([empty, part], [part, empty], [empty, part, empty]):
        merged = merge_moments(order)
        assert (merged.n, merged.mean.tolist(), merged.squared) == (3, [1.0, 2.0], 5.0)


def test_a_shard_may_have_no_rows(tmp_path: Path) -> None:
    none = np.zeros(0, dtype=np.int32)
    ids = np.arange(4, dtype=np.int32)
    examples = [Example(document=str(i), kept=none if i % 2 == 0 else ids, token_ids=ids) for i in range(5)]
    layout = TokenLayout(content="token")
    with StoreWriter(tmp_path / "s", hook_points={"x": 3}, dtype="fp32", layout=layout, plan={}) as writer:
        for i, example in enumerate(examples):
            writer.write_shard([example], {"x": torch.full((len(example.kept), 3), float(i))})
        writer.finish()
    store = ActivationStore.open(tmp_path / "s", verify=True)
    assert store.rows(0, 8)[:, 0].tolist() == [1.0] * 4 + [3.0] * 4
    assert store.moments()[0].tolist() == [2.0, 2.0, 2.0]
    assert sorted(torch.cat(list(store.batches(3, n_tokens=8)))[:, 0].tolist()) == [1.0] * 4 + [3.0] * 4


def test_row_statistics_do_not_depend_on_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    whole = row_statistics(rows)
    monkeypatch.setattr("saekit.store.moments.SLICE_ELEMENTS", {"cpu": 6 * 7})
    sliced = row_statistics(rows)
    assert len(sliced.means) == 8
    assert torch.equal(sliced.norms, whole.norms)
    assert np.allclose(sliced.moments().mean, whole.moments().mean, atol=1e-15)


def test_the_norm_report_lists_positions_by_count() -> None:
    norms = np.ones(100)
    norms[[0, 10, 20, 35]] = 50.0
    position = np.arange(100) % 10
    report = norm_report(norms, np.arange(100) // 10, position)
    assert (report["median"], report["n_high"], report["largest"]) == (1.0, 4, 50.0)
    assert report["high_by_position"] == [[0, 3], [5, 1]]
    assert report["first_high"][3] == {"row": 35, "example": 3, "position": 5}


def test_the_examples_of_texts_come_back(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "s", n_examples=24)
    table = store.examples
    assert (table.kind, len(table), table.layout) == ("text", 24, TokenLayout(content="token", prefix=("bos",)))
    assert table.documents == [f"doc-{i:03d}" for i in range(12)]
    assert table.document_of.tolist() == [i // 2 for i in range(24)]
    assert table.label_names == ["animals", "food", "tools"]
    assert [table.label_of[i] for i in (0, 2, 4, 12)] == [0, 1, 2, -1]
    assert table[12].label is None
    assert table[3].start == 20
    assert np.array_equal(table[5].kept, np.arange(1, table[5].n_tokens))
    assert np.array_equal(table.row_position[table.row_offsets[5] : table.row_offsets[6]], table[5].kept)
    assert table.token_at(5, 0) == 0
    with pytest.raises(IndexError, match="example 5 has"):
        table.token_at(5, 99)
    with pytest.raises(IndexError, match="examples 0 to 23, not 24"):
        table[24]
    with pytest.raises(InputError, match="texts; they have no geometry"):
        table.geometry(0)


def test_tokens_are_readable_also_when_they_are_parts_of_characters(tmp_path: Path) -> None:
    table = make_tiny_store(tmp_path / "s").examples
    assert table.vocabulary == VOCABULARY
    assert [table.token_text(i) for i in (0, 1, 4, 6, 7)] == ["<|endoftext|>", "\\xe2", "\n", "é", " word0"]
    assert table.token_text(5_000) == "<5000>"


def test_the_examples_of_images_come_back(tmp_path: Path) -> None:
    table = make_tiny_store(tmp_path / "s", kind="image").examples
    assert (table.kind, table.layout.prefix, table.vocabulary) == ("image", ("cls",), None)
    assert table.geometry(3).grid == GRID
    assert table.thumbnail(3)[:4] == b"RIFF"
    assert (table.caption(3), table.caption(4)) == ("picture 3", None)
    assert table[6].label is None
    with pytest.raises(InputError, match="images; they have no token ids"):
        table.token_ids(0)


def test_the_example_table_is_one_directory_that_can_be_copied(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "s")
    shutil.copytree(store.path / "examples", tmp_path / "elsewhere")
    shutil.rmtree(store.path)
    table = ExampleTable.open(tmp_path / "elsewhere", verify=True)
    assert table.documents[3] == "doc-003"
    assert len(table.row_example) == table.n_rows


def test_reading_examples_needs_no_torch(tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "s")
    code = (
        "import sys; from saekit.store.examples import ExampleTable;"
        f"t = ExampleTable.open({str(tmp_path / 's' / 'examples')!r}); print(t[2].document, 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["doc-001", "False"]


def test_names_with_odd_characters_survive(tmp_path: Path) -> None:
    names = ["ünï/cödé.txt", "with\nnewline", "lone \udcff surrogate"]
    kept = np.array([0], dtype=np.int32)
    with ExampleTableWriter(tmp_path / "t", kind="text", layout=TokenLayout(content="token")) as writer:
        writer.append(Example(document=name, kept=kept, label=name, token_ids=kept) for name in names)
        writer.finish()
    table = ExampleTable.open(tmp_path / "t")
    assert table.documents == [*names[:2], "lone \\udcff surrogate"]
    assert sorted(table.label_names) == sorted(table.documents)
    with ExampleTableWriter(tmp_path / "none", kind="image", layout=TokenLayout(content="patch")) as writer:
        writer.finish()
    assert len(ExampleTable.open(tmp_path / "none")) == 0


def test_an_example_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    kept = np.array([0], dtype=np.int32)
    with ExampleTableWriter(tmp_path / "t", kind="image", layout=TokenLayout(content="patch")) as writer:
        with pytest.raises(StoreError, match="Example 'a' is of kind 'text' among examples of kind 'image'"):
            writer.append([Example(document="a", kept=kept, token_ids=kept)])
    assert list(tmp_path.iterdir()) == []


def test_every_damaged_shard_is_named_with_what_was_expected(tmp_path: Path) -> None:
    path = make_tiny_store(tmp_path / "s", kind="image", n_examples=60, hook_points=TWO).path
    (path / "shards" / "00001" / "layers.1.bin").unlink()
    with open(path / "shards" / "00004" / "layers.0%3Ainput.bin", "ab") as file:
        file.truncate(100)
    with pytest.raises(StoreError) as caught:
        ActivationStore.open(path)
    message = str(caught.value)
    assert "2 of 6 shards" in message
    assert "Missing: 00001 layers.1." in message
    assert "Wrong size: 00004 layers.0:input (expected 6400 bytes, found 100)" in message


def test_an_edited_byte_is_found_by_verify(tmp_path: Path) -> None:
    path = make_tiny_store(tmp_path / "s").path
    ActivationStore.open(path, verify=True)
    with open(path / "shards" / "00002" / "layers.1.bin", "r+b") as file:
        file.seek(40)
        byte = file.read(1)[0]
        file.seek(40)
        file.write(bytes([byte ^ 1]))
    assert ActivationStore.open(path).n_examples == 24
    with pytest.raises(StoreError, match=r"1 of 3 shards .* Altered: 00002 layers.1 \(expected BLAKE2b \w{32}, found"):
        ActivationStore.open(path, verify=True)


def test_edited_examples_and_manifests_are_found(tmp_path: Path) -> None:
    path = make_tiny_store(tmp_path / "s").path
    tokens = path / "examples" / "tokens.i32"
    whole = tokens.read_bytes()
    tokens.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(StoreError, match="Altered: tokens.i32"):
        ActivationStore.open(path, verify=True)
    tokens.write_bytes(whole[:-4])
    with pytest.raises(StoreError, match=r"Wrong size: tokens.i32 \(expected"):
        _ = ActivationStore.open(path).examples
    tokens.write_bytes(whole)
    (path / "shards" / "00001" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="Missing: 00001 manifest.json"):
        ActivationStore.open(path, verify=True)


def test_a_manifest_that_was_edited_with_its_shard_is_found(tmp_path: Path) -> None:
    path = make_tiny_store(tmp_path / "s").path
    manifest = path / "shards" / "00001" / "manifest.json"
    data = json.loads(manifest.read_text())
    other = json.loads((path / "shards" / "00000" / "manifest.json").read_text())
    data["files"]["layers.1"]["blake2b"] = other["files"]["layers.1"]["blake2b"]
    manifest.write_text(json.dumps(data))
    with pytest.raises(StoreError, match="00001"):
        ActivationStore.open(path, verify=True)


def test_a_shard_replaced_together_with_its_manifest_is_found(tmp_path: Path) -> None:
    path = make_tiny_store(tmp_path / "a", kind="image", seed=1).path
    other = make_tiny_store(tmp_path / "b", kind="image", seed=2).path
    shutil.rmtree(path / "shards" / "00001")
    shutil.copytree(other / "shards" / "00001", path / "shards" / "00001")
    with pytest.raises(StoreError, match="content hash"):
        ActivationStore.open(path, verify=True)


def test_the_same_content_has_the_same_hash(tmp_path: Path) -> None:
    first = make_tiny_store(tmp_path / "a", seed=3)
    assert make_tiny_store(tmp_path / "b", seed=3).content_hash == first.content_hash
    assert make_tiny_store(tmp_path / "c", seed=4).content_hash != first.content_hash


def test_something_else_than_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a directory"):
        ActivationStore.open(tmp_path / "nowhere")
    (tmp_path / "meta.json").write_text('{"kind": "FeatureIndex", "schema": 1}')
    with pytest.raises(StoreError, match="holds a 'FeatureIndex', not an 'ActivationStore'"):
        ActivationStore.open(tmp_path)


def test_hook_points_must_be_named_when_there_are_several(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "s", hook_points=TWO)
    assert store.d_model("layers.1") == 16
    with pytest.raises(StoreError, match=r"several hook points \(layers.1, layers.0:input\); name one"):
        store.d_model()
    with pytest.raises(HookPointError, match="no hook point 'layers.2'. It has: 'layers.1'"):
        store.rows(0, 1, "layers.2")


def test_provenance_says_what_a_checkpoint_needs(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "s")
    assert store.provenance() == {
        "backbone": {"spec": "tiny-text", "kind": "text", "d_model": 16, "n_layers": 2},
        "hook_point": "layers.1",
        "options": {"kind": "TextWindows"},
        "layout": {"content": "token", "prefix": ["bos"]},
        "store_hash": store.content_hash,
    }


def test_a_failing_task_is_raised_by_the_next_call() -> None:
    done = []
    with BackgroundTasks(2) as tasks:
        tasks.submit(lambda: done.append(1))
        tasks.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        with pytest.raises(ZeroDivisionError):
            tasks.drain()
        with pytest.raises(ZeroDivisionError):
            tasks.submit(lambda: done.append(2))
    assert done == [1]


def test_reading_ahead_keeps_order_raises_errors_and_closes_its_source() -> None:
    closed = []

    def numbers():  # type: ignore[no-untyped-def]
        try:
            yield from range(5)
            raise KeyError("five")
        finally:
            closed.append(True)

    ahead = read_ahead(numbers(), 2)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="five"):
        next(ahead)
    stopped = read_ahead(numbers(), 1)
    assert next(stopped) == 0
    stopped.close()
    assert closed == [True, True]
