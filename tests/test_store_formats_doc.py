"""docs/formats.md is normative: a store is read here with NumPy and the standard library, by that page alone."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fake_backbones import POINTS, FakeText
from stores import make_tiny_store

from saekit.jobs.extract import extract

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
TYPES = {"i32": "<i4", "i64": "<i8", "f64": "<f8", "u8": "u1"}


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def documented(title: str) -> set[str]:
    """Everything that a section puts between backticks."""
    return set(re.findall(r"`([^`]+)`", section(title)))


def column(folder: Path, name: str) -> np.ndarray:
    meta = json.loads((folder / "meta.json").read_text())
    return np.fromfile(folder / name, TYPES[name.rpartition(".")[2]]).reshape(meta["files"][name]["shape"])


def ragged(folder: Path, name: str) -> list[Any]:
    values, offsets = column(folder, name), column(folder, re.sub(r"\.\w+$", "_offsets.i64", name))
    return [values[offsets[i] : offsets[i + 1]] for i in range(len(offsets) - 1)]


def read_rows(path: Path, point: str) -> np.ndarray:
    """All rows at a hook point as float32."""
    meta = json.loads((path / "meta.json").read_text())
    parts = []
    for i, shard in enumerate(meta["shards"]):
        file = path / "shards" / f"{i:05d}" / f"{quote(point, safe='')}.bin"
        width = meta["hook_points"][point]["width"]
        if meta["dtype"] == "bf16":
            rows = (np.fromfile(file, "<u2").astype("<u4") << 16).view("<f4")
        else:
            rows = np.fromfile(file, {"fp16": "<f2", "fp32": "<f4"}[meta["dtype"]]).astype("<f4")
        parts.append(rows.reshape(shard["n_rows"], width))
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_rows_and_moments_are_where_the_page_says(tmp_path: Path, dtype: str) -> None:
    points = ("layers.1", "layers.0:input")
    store = make_tiny_store(tmp_path / "s", hook_points=points, dtype=dtype)
    for point in points:
        rows = read_rows(store.path, point)
        assert np.array_equal(rows, store.rows(0, store.n_rows, point).float().numpy())
        entry = json.loads((store.path / "meta.json").read_text())["hook_points"][point]
        mean = np.load(store.path / "moments" / f"{quote(point, safe='')}.mean.npy")
        assert np.allclose(mean, rows.mean(0, dtype=np.float64), atol=1e-12)
        spread = ((rows - mean) ** 2).sum(1).mean()
        assert entry["mean_squared_norm_about_mean"] == pytest.approx(spread)
        assert entry["norms"]["median"] == pytest.approx(np.median(np.linalg.norm(rows, axis=1)), rel=1e-6)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_examples_are_where_the_page_says(tmp_path: Path, kind: str) -> None:
    store = make_tiny_store(tmp_path / "s", kind=kind)
    folder, table = store.path / "examples", store.examples
    names = json.loads((folder / "meta.json").read_text())["label_names"]
    documents = [bytes(item).decode() for item in ragged(folder, "documents.u8")]
    document_of, label_of = column(folder, "document_of.i32"), column(folder, "label_of.i32")
    row_example, row_position = column(folder, "row_example.i32"), column(folder, "row_position.i32")
    offsets = column(folder, "row_offsets.i64")
    for i in range(len(table)):
        example = table[i]
        assert documents[document_of[i]] == example.document
        assert (None if label_of[i] < 0 else names[label_of[i]]) == example.label
        assert row_position[offsets[i] : offsets[i + 1]].tolist() == example.kept.tolist()
        assert set(row_example[offsets[i] : offsets[i + 1]]) == {i}
        if kind == "text":
            assert np.array_equal(ragged(folder, "tokens.i32")[i], example.token_ids)
            assert column(folder, "start.i32")[i] == example.start
        else:
            geometry = example.geometry
            expected = [geometry.width, geometry.height, *geometry.crop, *geometry.grid]
            assert column(folder, "geometry.f64")[i].tolist() == expected
            assert bytes(ragged(folder, "thumbnails.u8")[i]) == example.thumbnail
            assert (bytes(ragged(folder, "captions.u8")[i]).decode() or None) == example.caption
    if kind == "text":
        assert [bytes(token) for token in ragged(folder, "vocabulary.u8")] == table.vocabulary


def test_checksums_are_computed_as_the_page_says(tmp_path: Path) -> None:
    path = make_tiny_store(tmp_path / "s").path
    meta = json.loads((path / "meta.json").read_text())
    examples = json.loads((path / "examples" / "meta.json").read_text())
    manifests = []
    for i in range(len(meta["shards"])):
        folder = path / "shards" / f"{i:05d}"
        manifests.append(json.loads((folder / "manifest.json").read_text()))
        for entry in manifests[-1]["files"].values():
            data = (folder / entry["file"]).read_bytes()
            assert (len(data), hashlib.blake2b(data, digest_size=16).hexdigest()) == (entry["bytes"], entry["blake2b"])
    value = {"manifests": manifests, "examples": examples["content_hash"], "dtype": meta["dtype"]}
    data = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    found = hashlib.blake2b(len(data).to_bytes(8, "little") + data, digest_size=16).hexdigest()
    assert found == meta["content_hash"]
    for name, entry in examples["files"].items():
        data = (path / "examples" / name).read_bytes()
        assert hashlib.blake2b(data, digest_size=16).hexdigest() == entry["blake2b"]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_every_file_and_key_is_on_the_page(tmp_path: Path, kind: str) -> None:
    path = make_tiny_store(tmp_path / "s", kind=kind).path
    store, table = documented("ActivationStore"), documented("ExampleTable")
    assert {file.name for file in (path / "examples").iterdir()} <= table
    assert {file.name for file in path.iterdir()} <= {name.rstrip("/").split("/")[0] for name in store}
    assert {file.name for file in (path / "shards" / "00000").iterdir()} == {"layers.1.bin", "manifest.json"}
    assert json.loads((path / "examples" / "meta.json").read_text()).keys() <= table


def test_every_key_of_an_extraction_is_on_the_page(tmp_path: Path) -> None:
    path = extract(FakeText(), ["some words"] * 4, hook_points=POINTS, out=tmp_path / "s", progress=False).path
    meta, keys = json.loads((path / "meta.json").read_text()), documented("ActivationStore")
    for part in (
        meta,
        meta["extraction"],
        meta["skipped"],
        meta["dropped"],
        meta["hook_points"][POINTS[0]],
        meta["hook_points"][POINTS[0]]["norms"],
        json.loads((path / "shards" / "00000" / "manifest.json").read_text()),
    ):
        assert part.keys() <= keys
