"""Every statistic beside a plain loop over features in float64."""

import dataclasses
from collections import Counter, defaultdict
from pathlib import Path

import indexes
import numpy as np
import pytest
from indexes import BANK, CAT, DEAD, DENSE, RED_CORNER, SCRIPT, VOCABULARY, dense, make_tiny_index

from saekit.index import FeatureIndex
from saekit.index.builder import IndexPlan, write_index


@pytest.fixture(scope="module", params=["text", "image"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return make_tiny_index(tmp_path_factory.mktemp("indexes") / "index", request.param)


def entropy_bits(weights: dict[int, float]) -> float:
    p = np.array(list(weights.values())) / sum(weights.values())
    return float(-(p * np.log2(p)).sum())


def weight_by(keys: np.ndarray, values: np.ndarray) -> dict[int, float]:
    weights: dict[int, float] = defaultdict(float)
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        if value:
            weights[key] += value
    return weights


def test_counts_and_values_match_a_loop_over_features(index: FeatureIndex) -> None:
    codes, stats = dense(index), index.stats
    documents = index.examples.document_of[index.row_example]
    for feature in range(index.d_sae):
        active = codes[:, feature] > 0
        values = codes[active, feature]
        assert stats["n_active"][feature] == active.sum()
        assert stats["density"][feature] == pytest.approx(active.mean())
        assert stats["is_dead"][feature] == (not active.any())
        assert stats["n_documents"][feature] == len(set(documents[active].tolist()))
        assert stats["total"][feature] == pytest.approx(values.sum())
        if not len(values):
            assert np.isnan([stats[name][feature] for name in ("max", "mean", "q50", "q90", "q99")]).all()
            continue
        assert stats["max"][feature] == values.max()
        assert stats["mean"][feature] == pytest.approx(values.mean())
        for name, level in (("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
            assert stats[name][feature] == pytest.approx(np.quantile(values, level))
        assert index.quantiles(feature) == pytest.approx(np.quantile(values, index.quantile_levels))


def test_position_bias_matches_a_loop_over_features(index: FeatureIndex) -> None:
    codes, position = dense(index), index.row_position.astype(np.float64)
    for feature in range(index.d_sae):
        active = codes[:, feature] > 0
        if not active.any():
            assert np.isnan(index.stats["position_mean"][feature])
            continue
        mean = position[active].mean()
        assert index.stats["position_mean"][feature] == pytest.approx(mean)
        expected = (mean - position.mean()) / position.std()
        assert index.stats["position_bias"][feature] == pytest.approx(expected, abs=1e-6)


def test_token_entropy_and_top_token_match_a_loop_over_features(index: FeatureIndex) -> None:
    if index.kind == "image":
        assert not {"token_entropy", "top_token", "top_token_share"} & set(index.stats)
        return
    codes = dense(index)
    examples = zip(index.row_example.tolist(), index.row_position.tolist(), strict=True)
    tokens = np.array([index.examples.token_at(example, position) for example, position in examples])
    for feature in range(index.d_sae):
        weights = weight_by(tokens, codes[:, feature])
        if not weights:
            assert np.isnan(index.stats["token_entropy"][feature])
            assert index.stats["top_token"][feature] == -1
            continue
        top = max(weights, key=lambda token: weights[token])
        assert index.stats["token_entropy"][feature] == pytest.approx(entropy_bits(weights), abs=1e-5)
        assert index.stats["top_token"][feature] == top
        assert index.stats["top_token_share"][feature] == pytest.approx(weights[top] / sum(weights.values()))


def test_label_entropy_lift_and_counts_match_a_loop_over_features(index: FeatureIndex) -> None:
    codes = dense(index)
    labels = index.examples.label_of[index.row_example]
    documents = index.examples.document_of[index.row_example]
    n_rows = Counter(labels.tolist())
    for feature in range(index.d_sae):
        weights = weight_by(labels, codes[:, feature])
        lifts = index.label_lift(feature)
        assert lifts is not None
        if not weights:
            assert index.stats["top_label"][feature] == -1
            assert np.isnan(index.stats["label_entropy"][feature])
            assert np.isnan(index.stats["top_label_lift"][feature])
            assert lifts == []
            continue
        top = max(weights, key=lambda label: weights[label])
        share, base_rate = weights[top] / sum(weights.values()), n_rows[top] / index.n_rows
        assert index.stats["label_entropy"][feature] == pytest.approx(entropy_bits(weights), abs=1e-5)
        assert index.stats["top_label"][feature] == top
        assert index.stats["top_label_lift"][feature] == pytest.approx(share / base_rate, rel=1e-5)
        assert lifts[0].label == index.label_names[top]
        for lift in lifts:
            label = index.label_names.index(lift.label)
            active = (codes[:, feature] > 0) & (labels == label)
            assert lift.share == pytest.approx(weights[label] / sum(weights.values()), rel=1e-5)
            assert lift.base_rate == pytest.approx(n_rows[label] / index.n_rows)
            assert lift.lift == pytest.approx(lift.share / lift.base_rate)
            assert (lift.n, lift.n_documents) == (active.sum(), len(set(documents[active].tolist())))


def test_known_features_have_the_statistics_they_were_made_with(index: FeatureIndex) -> None:
    stats = index.stats
    assert stats["is_dead"].sum() == 1
    assert stats["is_dead"][DEAD]
    assert stats["density"][DENSE] == 1.0
    assert stats["position_bias"][DENSE] == 0.0
    if index.kind == "text":
        assert stats["token_entropy"][[BANK, SCRIPT]].tolist() == [0.0, 0.0]
        assert VOCABULARY[stats["top_token"][SCRIPT]] == b"<script>"
    else:
        assert stats["label_entropy"][CAT] == 0.0
        assert stats["top_label_lift"][CAT] == pytest.approx(3.0)
        assert stats["position_mean"][RED_CORNER] == 1.0


def test_rows_without_a_label_are_left_out_of_entropy_but_not_of_shares(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    examples = indexes.tiny_examples("text", 10, generator)
    codes = indexes.tiny_codes("text", examples, 8, generator)
    for i in range(8):
        examples[i] = dataclasses.replace(examples[i], label=None)
    indexes.write_examples(tmp_path / "examples", "text", examples)
    plan = IndexPlan(d_sae=8, examples=tmp_path / "examples", meta={})
    write_index(tmp_path / "index", plan, indexes.encode_dense(codes), dict, progress=False)
    index = FeatureIndex.open(tmp_path / "index")
    assert index.stats["label_entropy"][DENSE] == pytest.approx(1.0, abs=0.01)
    lifts = index.label_lift(DENSE)
    assert lifts is not None
    assert sum(lift.share for lift in lifts) == pytest.approx(0.6, abs=0.02)
    assert sum(lift.base_rate for lift in lifts) == pytest.approx(0.6)
