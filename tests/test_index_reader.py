"""What an index answers, beside brute force on the code matrix it was made from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import indexes
import numpy as np
import pytest
import torch
from indexes import (
    BANK,
    D_IN,
    DEAD,
    DENSE,
    EMOJI,
    RED_CORNER,
    SCRIPT,
    SPORT,
    VOCABULARY,
    dense,
    encode_dense,
    make_tiny_index,
    tiny_meta,
    write_examples,
)

from saekit.errors import FeatureIndexError
from saekit.index import FeatureIndex, matches, queries
from saekit.index.builder import IndexPlan, write_index
from saekit.index.dictionary import dictionary_arrays
from saekit.store import Example


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return make_tiny_index(tmp_path_factory.mktemp("indexes") / "text", "text")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return make_tiny_index(tmp_path_factory.mktemp("indexes") / "images", "image")


def documents(index: FeatureIndex) -> np.ndarray:
    return np.asarray(index.examples.document_of[index.row_example])


def test_reading_an_index_does_not_import_torch(text: FeatureIndex) -> None:
    program = f"""
import sys
from saekit import FeatureIndex
index = FeatureIndex.open({str(text.path)!r})
index[0].top_examples(3), repr(index[0]), index[0]._repr_html_(), index.quantile_examples(0), index.random_examples(0)
index.coactivating(0), index.features_of_token(1), index.features_of_label(0), index.label_lift(0)
index.annotations.all()
print([name for name in ("torch", "transformers", "pandas") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_both_orders_hold_the_same_codes(text: FeatureIndex) -> None:
    codes = dense(text)
    by_row = np.zeros_like(codes)
    for row in range(text.n_rows):
        features, values = text.latents_of_row(row)
        assert (np.diff(features.astype(int)) > 0).all()
        by_row[row, features] = values
    assert (by_row == codes).all()
    rows, features, values = text.latents_of_example(7)
    assert set(text.row_example[rows].tolist()) == {7}
    assert (codes[rows, features] == values).all()
    assert len(values) == (codes[list(text.rows_of_example(7))] > 0).sum()


@pytest.mark.parametrize("feature", [BANK, DENSE, SPORT, 9])
def test_top_examples_are_each_documents_peak_once_highest_first(text: FeatureIndex, feature: int) -> None:
    codes = dense(text)[:, feature]
    peaks = {document: codes[documents(text) == document].max() for document in set(documents(text).tolist())}
    expected = sorted((value for value in peaks.values() if value > 0), reverse=True)
    found = text.top_examples(feature, 1000)
    assert [example.value for example in found] == expected
    assert len({example.document for example in found}) == len(found)
    assert [example.value for example in text.top_examples(feature, 3)] == expected[:3]
    for example in found:
        assert peaks[example.document] == example.value == codes[example.row]
        assert text.row_position[example.row] == example.position
        inside = [row for row in text.rows_of_example(example.example) if codes[row] > 0]
        assert example.positions.tolist() == text.row_position[inside].tolist()
        assert example.values.tolist() == codes[inside].tolist()
        assert example.quantile == pytest.approx((codes[codes > 0] <= example.value).mean())


@pytest.mark.parametrize("feature", [BANK, DENSE, SPORT, 9])
@pytest.mark.parametrize("n_bands", [1, 3, 5])
def test_quantile_examples_lie_between_the_true_quantiles_of_active_values(
    text: FeatureIndex, feature: int, n_bands: int
) -> None:
    values = text.activations(feature).values
    found = text.quantile_examples(feature, n_bands, per_band=4)
    assert [example.band for example in found] == sorted((example.band for example in found), reverse=True)
    assert {example.band for example in found} == set(range(n_bands))
    assert len({example.document for example in found}) == len(found)
    for example in found:
        assert example.band is not None
        low, high = np.quantile(values, [example.band / n_bands, (example.band + 1) / n_bands])
        assert low <= example.value <= high
        assert example.value in example.values


def test_a_band_where_no_document_peaks_shows_its_strongest_token_in_the_band(text: FeatureIndex) -> None:
    # Every document peaks high on a feature that is always active: low bands have tokens but no peaks.
    peaks = {example.document: example.value for example in text.top_examples(DENSE, 1000)}
    lowest = [example for example in text.quantile_examples(DENSE, 5, 3) if example.band == 0]
    assert len(lowest) == 3
    assert all(example.value < peaks[example.document] for example in lowest)


def test_random_examples_are_seeded_distinct_documents_at_their_peaks(text: FeatureIndex) -> None:
    first, again, other = (text.random_examples(SPORT, 8, seed=seed) for seed in (0, 0, 1))
    assert [example.row for example in first] == [example.row for example in again]
    assert [example.row for example in first] != [example.row for example in other]
    assert len({example.document for example in first}) == 8
    peaks = {example.row for example in text.top_examples(SPORT, 1000)}
    assert {example.row for example in first} <= peaks


def test_a_document_whose_windows_lie_apart_still_shows_once_at_its_peak(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    together = indexes.tiny_examples("text", 20, generator)
    apart = together[::2] + together[1::2]
    codes = indexes.tiny_codes("text", apart, 8, generator)
    indexes.write_examples(tmp_path / "examples", "text", apart)
    plan = IndexPlan(d_sae=8, examples=tmp_path / "examples", meta={})
    write_index(tmp_path / "index", plan, indexes.encode_dense(codes), dict, progress=False)
    index = FeatureIndex.open(tmp_path / "index")
    for feature in (BANK, DENSE):
        found = index.top_examples(feature, 100)
        stored = dense(index)[:, feature]
        peaks = {document: stored[documents(index) == document].max() for document in range(20)}
        assert {example.document: example.value for example in found} == {d: v for d, v in peaks.items() if v > 0}
        assert len(found) == len({example.document for example in found})
        assert index.stats["n_documents"][feature] == len(found)


def test_a_dead_feature_has_no_examples_and_an_empty_histogram(text: FeatureIndex) -> None:
    assert text.top_examples(DEAD) == text.quantile_examples(DEAD) == text.random_examples(DEAD) == []
    assert text.histogram(DEAD)[1].sum() == 0
    assert len(text.coactivating(DEAD).features) == 0
    assert text.top_tokens(DEAD) == []
    assert "dead" in repr(text[DEAD])


@pytest.mark.parametrize("feature", [BANK, DENSE, 9])
def test_histogram_counts_match_numpys(text: FeatureIndex, feature: int) -> None:
    values = text.activations(feature).values
    edges, counts = text.histogram(feature, 13)
    expected, expected_edges = np.histogram(values.astype(np.float64), bins=13, range=(0, float(values.max())))
    assert edges == pytest.approx(expected_edges)
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == len(values)


def test_coactivation_matches_set_arithmetic(text: FeatureIndex) -> None:
    active = dense(text) > 0
    for feature in (BANK, DENSE, 9):
        found = text.coactivating(feature, n=text.d_sae)
        both = (active[:, [feature]] & active).sum(0)
        either = (active[:, [feature]] | active).sum(0)
        assert sorted(found.features.tolist()) == [g for g in np.flatnonzero(both) if g != feature]
        assert (np.diff(found.jaccard) <= 0).all()
        assert found.jaccard == pytest.approx((both / np.maximum(either, 1))[found.features])
        assert found.p_given == pytest.approx(both[found.features] / both[feature])
        assert found.p_inverse == pytest.approx(both[found.features] / active.sum(0)[found.features])
        assert found.n_sampled == both[feature]


def test_a_dense_features_coactivation_is_estimated_from_a_capped_sample(
    text: FeatureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = text.coactivating(DENSE, n=5)
    monkeypatch.setattr(queries, "MAX_COACTIVATION_ROWS", 300)
    sampled = text.coactivating(DENSE, n=24)
    assert sampled.n_sampled == 300
    by_feature = dict(zip(sampled.features.tolist(), sampled.jaccard.tolist(), strict=True))
    for feature, jaccard in zip(exact.features.tolist(), exact.jaccard.tolist(), strict=True):
        assert by_feature[feature] == pytest.approx(jaccard, abs=0.06)


def test_features_of_a_token_are_ranked_by_precision_and_recall(text: FeatureIndex) -> None:
    token = VOCABULARY.index(b" bank")
    found = text.features_of_token(token, n=50)
    assert found.features[0] == BANK
    assert found.score[0] == pytest.approx(1.0)
    codes, is_token = dense(text), text.array("tokens/of_row") == token
    for i, feature in enumerate(found.features):
        assert found.precision[i] == pytest.approx(codes[is_token, feature].sum() / codes[:, feature].sum(), rel=1e-4)
        assert found.recall[i] == pytest.approx((codes[is_token, feature] > 0).mean())


def test_a_frequent_tokens_rows_are_capped(text: FeatureIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matches, "MAX_TOKEN_ROWS", 20)
    found = text.features_of_token(VOCABULARY.index(b" bank"))
    assert found.features[0] == BANK
    assert found.precision[0] == pytest.approx(1.0, abs=0.35)


def test_features_of_a_label_are_ranked_by_precision_and_recall(text: FeatureIndex) -> None:
    found = text.features_of_label("sport", n=50)
    assert found.features[0] == SPORT
    codes, is_sport = dense(text), text.examples.label_of[text.row_example] == text.label_names.index("sport")
    n_documents = len(set(documents(text)[is_sport].tolist()))
    for i, feature in enumerate(found.features):
        assert found.precision[i] == pytest.approx(codes[is_sport, feature].sum() / codes[:, feature].sum(), rel=1e-4)
        fires = set(documents(text)[is_sport & (codes[:, feature] > 0)].tolist())
        assert found.recall[i] == pytest.approx(len(fires) / n_documents)


def test_tokens_are_found_by_any_part_of_their_text_most_frequent_first(text: FeatureIndex) -> None:
    counts = np.bincount(text.array("tokens/of_row"), minlength=len(VOCABULARY))
    found = text.search_tokens("SCRIPT")
    assert {VOCABULARY[token] for token in found} == {b"<script>", b"</script>"}
    assert counts[found[0]] >= counts[found[1]]
    assert text.search_tokens(" never") == []
    assert text.search_tokens("naï") == [VOCABULARY.index(" naïve".encode())]


def test_top_tokens_share_a_features_activation(text: FeatureIndex) -> None:
    codes, tokens = dense(text)[:, SPORT], text.array("tokens/of_row")
    found = text.top_tokens(SPORT, 100)
    assert sum(each.share for each in found) == pytest.approx(1.0)
    assert [each.share for each in found] == sorted((each.share for each in found), reverse=True)
    for each in found:
        here = codes[(tokens == each.token) & (codes > 0)]
        assert (each.n, each.mean) == (len(here), pytest.approx(here.mean()))
        assert each.share == pytest.approx(here.sum() / codes.sum())


def test_the_logit_lens_is_there_for_texts_only(text: FeatureIndex, images: FeatureIndex) -> None:
    lens = text.logits(BANK)
    assert lens is not None
    assert (np.diff(lens.promoted_values) <= 0).all()
    assert (np.diff(lens.suppressed_values) >= 0).all()
    assert lens.promoted_values[0] > 0 > lens.suppressed_values[0]
    assert images.logits(0) is None


@pytest.mark.parametrize("feature", [-1, 24, 10**9])
def test_a_feature_out_of_range_is_an_error_that_names_the_range(text: FeatureIndex, feature: int) -> None:
    asked = [
        text.__getitem__,
        text.activations,
        text.top_examples,
        text.quantile_examples,
        text.random_examples,
        text.histogram,
        text.quantiles,
        text.neighbours,
        text.coactivating,
        text.logits,
        text.label_lift,
        text.top_tokens,
    ]
    for ask in asked:
        with pytest.raises(FeatureIndexError, match=rf"no feature {feature}\b.* 0 to 23"):
            ask(feature)


def test_unknown_tokens_labels_rows_and_examples_are_errors(text: FeatureIndex, images: FeatureIndex) -> None:
    with pytest.raises(FeatureIndexError, match="no token id 999"):
        text.features_of_token(999)
    with pytest.raises(FeatureIndexError, match="Closest: 'sport'"):
        text.features_of_label("spot")
    with pytest.raises(FeatureIndexError, match="no row 900"):
        text.latents_of_row(900)
    with pytest.raises(FeatureIndexError, match="no example 60"):
        text.latents_of_example(60)
    with pytest.raises(FeatureIndexError, match="only texts can be searched"):
        images.search_tokens("a")
    with pytest.raises(FeatureIndexError, match="built without 'tokens/offsets'"):
        images.features_of_token(1)


def test_a_feature_prints_its_peaks_and_escapes_them_in_html(text: FeatureIndex) -> None:
    feature = text[SCRIPT]
    printed = repr(feature.top_examples(2)).splitlines()
    assert len(printed) == 2
    assert all("[[<script>]]" in line for line in printed)
    html = feature._repr_html_()
    assert "<script>" not in html
    assert "<mark>&lt;script&gt;</mark>" in html
    assert "fires on" in repr(feature)
    assert "⏎" in "".join(repr(each.top_examples(20)) for each in text)


def test_a_byte_level_token_prints_inside_its_character(text: FeatureIndex) -> None:
    printed = repr(text[EMOJI].top_examples(20))
    assert any(f"[[\\x{byte:02x}]]" in printed for byte in "🙂".encode())


def test_an_image_feature_prints_the_document_and_the_patch(images: FeatureIndex) -> None:
    printed = repr(images[RED_CORNER].top_examples(1))
    assert "patch row 0, column 0" in printed
    html = images[RED_CORNER].top_examples(1)._repr_html_()
    assert "data:image/webp;base64," in html


def test_missing_truncated_and_altered_files_are_all_named(text: FeatureIndex, tmp_path: Path) -> None:
    path = tmp_path / "index"
    shutil.copytree(text.path, path)
    (path / "by_feature/rows.npy").unlink()
    with open(path / "by_row/values.npy", "r+b") as file:
        file.truncate(200)
    with open(path / "quantiles.npy", "r+b") as file:
        file.seek(300)
        file.write(b"\x01\x02")
    with pytest.raises(
        FeatureIndexError, match=r"2 of \d+ files.*Missing: by_feature/rows.npy.*expected \d+ bytes, found 200"
    ):
        FeatureIndex.open(path)
    with pytest.raises(FeatureIndexError, match=r"3 of \d+ files.*Altered: quantiles.npy"):
        FeatureIndex.open(path, verify=True)


def test_an_unfinished_a_newer_and_a_foreign_folder_are_told_apart(text: FeatureIndex, tmp_path: Path) -> None:
    (tmp_path / "unfinished" / "partial").mkdir(parents=True)
    with pytest.raises(FeatureIndexError, match="unfinished index"):
        FeatureIndex.open(tmp_path / "unfinished")
    with pytest.raises(FeatureIndexError, match="not a directory"):
        FeatureIndex.open(tmp_path / "nothing")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "meta.json").write_text(json.dumps({**text.meta, "schema": 99}))
    with pytest.raises(FeatureIndexError, match="schema 99"):
        FeatureIndex.open(newer)
    (newer / "meta.json").write_text(json.dumps({**text.meta, "kind": "ActivationStore"}))
    with pytest.raises(FeatureIndexError, match="'ActivationStore', not a 'FeatureIndex'"):
        FeatureIndex.open(newer)


def test_a_moved_index_still_opens_and_verifies(text: FeatureIndex, tmp_path: Path) -> None:
    shutil.copytree(text.path, tmp_path / "elsewhere")
    moved = FeatureIndex.open(tmp_path / "elsewhere", verify=True)
    assert [example.row for example in moved.top_examples(BANK)] == [example.row for example in text.top_examples(BANK)]


def test_copies_of_one_passage_are_shown_once_among_the_top(tmp_path: Path) -> None:
    passage = np.array([0, 13, 2, 3, 4, 5, 13, 2, 3, 1, 4], dtype=np.int32)  # the peak is the " bank" at position 9
    other = np.array([0, 13, 2, 3, 4, 5, 13, 2, 4, 1, 4], dtype=np.int32)
    examples = [
        Example(document=f"doc{i}", kept=np.arange(1, 11, dtype=np.int32), token_ids=ids)
        for i, ids in enumerate([passage, passage, other, passage])
    ]
    table = tmp_path / "examples"
    write_examples(table, "text", examples)
    codes = np.zeros((40, 4), dtype=np.float32)
    codes[[8, 18, 28, 38], 0] = [1.0, 4.0, 2.0, 3.0]
    plan = IndexPlan(d_sae=4, examples=table, meta=tiny_meta("text", 4))
    arrays = dictionary_arrays(torch.randn(D_IN, 4), torch.randn(4, D_IN), None)
    write_index(tmp_path / "index", plan, encode_dense(codes), lambda: arrays, progress=False)
    found = FeatureIndex.open(tmp_path / "index").top_examples(0, 4)
    assert [example.example for example in found] == [1, 2]
