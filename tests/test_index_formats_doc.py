"""docs/formats.md is enough to read an index: this file uses NumPy and json, and from saekit only what builds one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from indexes import BANK, VOCABULARY, make_tiny_index

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## FeatureIndex\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_index(tmp_path_factory.mktemp("index") / "index", "text").path


def test_an_index_can_be_read_by_the_document_alone(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    offsets = np.load(path / "by_feature/offsets.npy")
    rows, values = np.load(path / "by_feature/rows.npy"), np.load(path / "by_feature/values.npy")
    mine = slice(offsets[BANK], offsets[BANK + 1])
    activations = values[mine].astype(np.float32) * 2.0 ** meta["value_exponent"]
    tokens = np.load(path / "tokens/of_row.npy")[rows[mine]]
    assert {VOCABULARY[token] for token in tokens} == {b" bank"}
    assert activations.min() > 5
    assert activations.max() == np.load(path / "statistics/max.npy")[BANK]
    by_row = np.load(path / "by_row/offsets.npy")
    row = int(rows[mine][0])
    features = np.load(path / "by_row/features.npy")[by_row[row] : by_row[row + 1]]
    found = np.load(path / "by_row/values.npy")[by_row[row] : by_row[row + 1]][features == BANK]
    assert found == values[mine][0]
    token_offsets = np.load(path / "tokens/offsets.npy")
    bank = VOCABULARY.index(b" bank")
    assert (
        np.load(path / "tokens/rows.npy")[token_offsets[bank] : token_offsets[bank + 1]].tolist() == rows[mine].tolist()
    )
    pairs = np.load(path / "labels/offsets.npy")
    totals = np.load(path / "labels/total.npy")[pairs[BANK] : pairs[BANK + 1]]
    assert totals.sum() == pytest.approx(np.load(path / "statistics/total.npy")[BANK])


def documented_arrays() -> dict[str, tuple[str, list[str]]]:
    """For every array that the tables name: its dtype and its axes."""
    files = re.findall(r"^\| `([\w/]+)\.npy` \| (\w+) `\[(.+?)\]`", SECTION, re.MULTILINE)
    arrays = {name: (dtype, re.split(r"(?<!\+) (?!\+)", axes)) for name, dtype, axes in files}
    table = SECTION.split("### The statistics table")[1].split("### meta.json")[0]
    for names, dtypes in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\w, ]+) \|", table, re.MULTILINE):
        columns, types = re.findall(r"\w+", names), re.findall(r"\w+", dtypes)
        for column, dtype in zip(columns, types if len(types) > 1 else types * len(columns), strict=True):
            arrays[f"statistics/{column}"] = (dtype, ["d_sae"])
    for name, dtype in re.findall(r"`(logits/\w+)\.npy`(?=[^`]*(?:`logits/\w+\.npy`)?,\s(int32|float32))", SECTION):
        arrays[name] = (dtype, ["d_sae", "n_logits"])
    return arrays


def test_every_array_is_in_the_document_with_its_dtype_and_shape(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    documented = documented_arrays()
    assert set(documented) == set(meta["arrays"])
    sizes = {name: meta[name] for name in ("d_sae", "n_rows", "n_codes")} | {"n_levels": len(meta["quantile_levels"])}
    for name, (dtype, axes) in documented.items():
        array = np.load(path / f"{name}.npy", allow_pickle=False)
        assert array.dtype == np.dtype(dtype), name
        assert array.ndim == len(axes), name
        for length, axis in zip(array.shape, axes, strict=True):
            size, _, more = axis.partition(" + ")
            assert sizes.setdefault(size, length - int(more or 0)) == length - int(more or 0), (name, axis)


def test_every_key_of_meta_json_is_in_the_document(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    described = SECTION.split("### meta.json")[1].split("### annotations.jsonl")[0]
    assert set(meta) <= set(re.findall(r"`(\w+)`", described))
