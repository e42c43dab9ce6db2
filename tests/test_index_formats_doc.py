"""docs/formats.md is enough to read an index: this file uses NumPy and json, and from saekit only what builds one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from indexes import BANK, VOCABULARY, make_tiny_index

from saekit.index import format as layout

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


def test_every_file_is_in_the_document_with_its_dtype(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    documented = re.sub(r"`statistics/<column>.npy`", "", SECTION)
    columns = set(re.findall(r"`(\w+)`", SECTION.split("### The statistics table")[1].split("### meta.json")[0]))
    for name in meta["arrays"]:
        folder, _, column = name.partition("/")
        if folder == "statistics":
            assert column in columns, name
        else:
            assert f"`{name}.npy`" in documented, name


def test_every_key_of_meta_json_is_in_the_document(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    described = SECTION.split("### meta.json")[1].split("### annotations.jsonl")[0]
    assert set(meta) <= set(re.findall(r"`(\w+)`", described))


def test_dtypes_and_shapes_on_disk_are_those_of_the_specs(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    specs = {
        **layout.ARRAYS,
        **layout.TOKEN_ARRAYS,
        **layout.LABEL_ARRAYS,
        **layout.NEIGHBOUR_ARRAYS,
        **layout.LOGIT_ARRAYS,
    }
    assert set(meta["arrays"]) - set(specs) == {name for name in meta["arrays"] if name.startswith("statistics/")}
    for name, spec in specs.items():
        array = np.load(path / f"{name}.npy")
        assert array.dtype.str in spec.dtypes, name
        assert array.ndim == len(spec.shape), name
        for length, axis in zip(array.shape, spec.shape, strict=True):
            base, plus, one = axis.partition("+")
            if base in meta:
                assert length == meta[base] + (int(one) if plus else 0), name
