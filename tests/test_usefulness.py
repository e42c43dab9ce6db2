"""The numbers about single latents against closed forms and brute force."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from indexes import make_tiny_index

from saekit.autoencoders import Relu, SparseAutoencoder, SparseAutoencoderConfig
from saekit.errors import InputError
from saekit.evaluation import class_losses, measure_reconstruction, pca_of_equal_fvu
from saekit.evaluation.description_length import code_bits, dense_length, sparse_length
from saekit.evaluation.geometry import decoder_geometry, effective_rank
from saekit.evaluation.interpretability import MonosemanticityMeter, label_use
from saekit.evaluation.latents import DensityHistogram, active_latents
from saekit.evaluation.pairs import feature_pairs, overlaps
from saekit.evaluation.pooled import pool
from saekit.evaluation.probing import auc, fit_logistic, k_sparse_probing, linear_probe, most_different
from saekit.evaluation.rows import Labels, first_of_each_document, probe_split, read_labels, store_labels
from saekit.kernels import SparseLatents
from saekit.metrics import fvu
from saekit.store import ActivationStore
from tests.stores import make_tiny_store

RANDOM = np.random.default_rng(0)


# reconstruction


def test_published_variants_are_their_formulas() -> None:
    x = torch.from_numpy(RANDOM.normal(3.0, 1.0, (200, 5))).float()
    x_hat = x * 0.9
    found = measure_reconstruction(lambda rows: rows * 0.9, [(x, np.arange(200) // 10)], x.mean(0))
    a, b = x.double().numpy(), x_hat.double().numpy()
    error = np.square(a - b).sum(1)
    legacy = np.mean(1 - error / np.square(a - a.mean(0)).sum(1))
    assert found.published["sae_lens_legacy_explained_variance"] == pytest.approx(legacy, rel=1e-5)
    wrong = np.square(a).sum(1).mean() - np.mean(np.square(a).mean(0)) ** 2
    assert found.published["saebench_explained_variance"] == pytest.approx(1 - error.mean() / wrong, rel=1e-5)
    assert found.published["saebench_mse"] == pytest.approx(error.mean() / 2048, rel=1e-5)
    assert found.norm_ratio == pytest.approx(0.9, rel=1e-6)
    # Data with a mean: the wrong formula flatters, the right one is below both.
    assert found.explained_variance < found.published["saebench_explained_variance"]


def test_densities_fall_in_the_bin_of_their_logarithm() -> None:
    histogram = DensityHistogram.of(np.array([0.0, 1e-3 * 1.01, 1.0, 1.0, 1e-12]))
    counts = dict(zip(histogram.log10_edges, histogram.counts, strict=False))
    assert sum(histogram.counts) == 4
    assert (counts[-3.0], counts[-0.2], counts[-8.0]) == (1, 2, 1)


@pytest.mark.parametrize("target", [0.9, 0.3, 0.05, 0.0])
def test_pca_of_equal_fvu_is_the_smallest_that_reaches_it(target: float) -> None:
    x = torch.from_numpy(RANDOM.normal(size=(400, 6)) * np.arange(1, 7)).float()
    mean, covariance = x.double().mean(0), torch.cov(x.double().T, correction=0)
    found = pca_of_equal_fvu(mean, covariance, x.split(200), target)
    left = 1 - np.cumsum(np.linalg.eigvalsh(covariance.numpy())[::-1]) / float(covariance.trace())
    assert found.k == min(int(np.argmax(left <= target + 1e-12)) + 1, 6)
    assert float(fvu(x, found.reconstruct(x))) <= target + 1e-6


def test_the_loss_of_a_classifier_is_on_its_own_clean_prediction() -> None:
    clean, changed = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    found = class_losses({"clean": clean, "sae": changed})
    assert found.cross_entropy["sae"][0] == pytest.approx(math.log(3), rel=1e-6)
    p = clean[0].softmax(-1)
    assert found.kl["sae"] == pytest.approx([float((p * (p * 3).log()).sum()), 0.0], abs=1e-6)
    assert found.increase_quantiles("sae")[2] > 0
    assert found.kl_interval("clean") == (0, 0)


# monosemanticity


def brute_monosemanticity(a: np.ndarray, e: np.ndarray) -> float:
    scaled = (a - a.min()) / (a.max() - a.min())
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    pairs = list(combinations(range(len(a)), 2))
    weight = np.array([scaled[i] * scaled[j] for i, j in pairs])
    cosine = np.array([unit[i] @ unit[j] for i, j in pairs])
    return float((weight * cosine).sum() / weight.sum())


@pytest.mark.parametrize("sizes", [[40], [1, 0, 30, 9]])
def test_monosemanticity_in_one_pass_agrees_with_all_pairs(sizes: list[int]) -> None:
    activations, embeddings = (
        RANDOM.gamma(1.0, size=(40, 5)) + np.array([0, 1, -2, 0, 5]),
        RANDOM.normal(1.0, size=(40, 7)),
    )
    meter = MonosemanticityMeter(5, 7)
    for a, e in zip(torch.from_numpy(activations).split(sizes), torch.from_numpy(embeddings).split(sizes), strict=True):
        meter.update(a, e)
    expected = [brute_monosemanticity(activations[:, i], embeddings) for i in range(5)]
    assert meter.value() == pytest.approx(expected, rel=1e-9)


def test_monosemanticity_is_one_for_one_embedding_and_undefined_for_one_example_or_none() -> None:
    embeddings = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    activations = torch.tensor([[1.0, 2, 3, 0, 0, 0], [1, 0, 0, 1, 0, 0], [0, 0, 7, 0, 0, 0], [0.0] * 6]).T
    meter = MonosemanticityMeter(4, 2)
    meter.update(activations, embeddings)
    one, none, alone, silent = meter.value()
    assert (one, none) == pytest.approx((1.0, 0.0))
    assert math.isnan(alone)
    assert math.isnan(silent)


# labels


def test_label_entropy_and_lift_in_closed_form() -> None:
    latents = np.array([[2.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [9.0, 9.0, 9.0]], dtype=np.float32)
    found = label_use(latents, np.array([0, 0, 1, -1]), np.array([10, 10, 20, 5]))
    assert found.entropy[:2] == pytest.approx([0.0, 1.0])
    assert found.lift[:2] == pytest.approx([2.0, 1.0])
    assert found.top_label.tolist() == [0, 0, -1]
    assert math.isnan(found.entropy[2])
    assert math.isnan(found.lift[2])


# probing


def test_the_probe_is_where_the_gradient_vanishes_and_weighs_classes_equally() -> None:
    x = RANDOM.normal(size=(60, 3))
    positive = x[:, 0] + RANDOM.normal(size=60) > 0.8
    probe = fit_logistic(x, positive, ridge=0.5)
    z = (x - x.mean(0)) / x.std(0)
    p = 1 / (1 + np.exp(-(z @ probe.weights + probe.bias)))
    weight = np.where(positive, 30 / positive.sum(), 30 / (~positive).sum())
    assert z.T @ (weight * (p - positive)) + 0.5 * probe.weights == pytest.approx(np.zeros(3), abs=1e-6)
    assert (weight * p).sum() == pytest.approx(30, abs=1e-4)


def test_a_probe_on_more_features_than_rows_is_the_same_optimum() -> None:
    x, positive = RANDOM.normal(size=(12, 40)), np.arange(12) < 5
    probe = fit_logistic(x, positive)
    z = (x - x.mean(0)) / x.std(0)
    p = 1 / (1 + np.exp(-(z @ probe.weights + probe.bias)))
    weight = np.where(positive, 6 / 5, 6 / 7)
    assert z.T @ (weight * (p - positive)) + probe.weights == pytest.approx(np.zeros(40), abs=1e-6)


def test_auc_counts_pairs_and_ties_by_half() -> None:
    scores, positive = np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])
    assert auc(scores, positive) == pytest.approx((2 + 1 + 0.5) / 4)
    assert math.isnan(auc(scores, np.ones(4, dtype=bool)))


def test_k_sparse_probing_finds_the_latent_of_each_class_and_says_how_much_one_is_worth() -> None:
    labels = np.repeat(np.arange(3), 30)
    latents = RANDOM.random((90, 20))
    latents[np.arange(90), labels + 4] += 2
    raw = RANDOM.normal(size=(90, 8))
    fit, test = np.arange(90) % 3 != 0, np.arange(90) % 3 == 0
    found = k_sparse_probing(
        {"latents": latents[fit], "raw": raw[fit]},
        labels[fit],
        {"latents": latents[test], "raw": raw[test]},
        labels[test],
        n_bootstrap=200,
    )
    assert found.best_latents == (4, 5, 6)
    assert found.best_accuracies == (1.0, 1.0, 1.0)
    by = {(each.features, each.k): each for each in found.results}
    assert set(by) == {(name, k) for name in ("latents", "raw") for k in (1, 2, 5, 16)} | {("raw", None)}
    assert (by["latents", 1].accuracy, by["latents", 1].auc) == (1, 1)
    assert by["latents", 1].accuracy_interval == (1, 1)
    low, high = by["raw", 1].accuracy_interval or (0, 0)
    assert low < by["raw", 1].accuracy < high
    assert by["raw", None].accuracy < 0.75
    assert most_different(latents[fit], labels[fit] == 2, 1).tolist() == [6]


def test_the_accuracy_is_balanced_and_a_latent_that_falls_silent_tells_a_class_too() -> None:
    labels = np.array([0] * 10 + [1] * 90)
    latents = RANDOM.random((100, 4))
    # Latent 2 is off in class 0 and in a third of class 1: one hit rate is 1, the other two thirds.
    latents[:, 2] = np.where((labels == 0) | (np.arange(100) % 3 == 0), 0.0, 5.0)
    x = {"latents": latents, "raw": RANDOM.random((100, 2))}
    found = k_sparse_probing(x, labels, x, labels, n_bootstrap=0)
    assert found.best_latents == (2, 2)
    expected = (1 + np.mean(latents[labels == 1, 2] > 0)) / 2
    assert found.best_accuracies == pytest.approx((expected, expected))


def test_probing_without_enough_labelled_documents_says_so() -> None:
    x = {"latents": RANDOM.random((9, 2)), "raw": RANDOM.random((9, 2))}
    with pytest.raises(InputError, match="1 of 2 classes have them"):
        k_sparse_probing(x, np.array([0] * 8 + [1]), x, np.array([0] * 4 + [1] * 5))


def test_a_linear_probe_names_the_class() -> None:
    labels = np.repeat([2, 5, 7], 20)
    x = np.eye(8)[labels] * 4 + RANDOM.normal(size=(60, 8))
    guessed = linear_probe(x, labels, {"clean": np.eye(8)[[2, 5, 7]] * 4, "zero": np.zeros((1, 8))})
    assert guessed["clean"].tolist() == [2, 5, 7]
    with pytest.raises(InputError, match="two classes"):
        linear_probe(x, np.full(60, 3), {"clean": x})


# geometry


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.eye(7)[:, :4]) == pytest.approx(4)
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1, abs=1e-4)
    half = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(half) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_geometry_finds_the_twin_and_the_angle_of_the_encoder() -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=4, d_sae=3, sparsity=Relu()))
    sae.W_dec.data.copy_(torch.tensor([[1.0, 0, 0, 0], [3, 4, 0, 0], [0, 0, 1, 0]]))
    sae.W_enc.data.copy_(torch.tensor([[1.0, 0, 0, 0], [4, -3, 0, 0], [0, 0, -2, 0]]).T)
    found = decoder_geometry(sae)
    assert found.nearest_cosine == pytest.approx([0.6, 0.6, 0.0], abs=1e-6)
    assert found.nearest_latent[:2].tolist() == [1, 0]
    assert found.encoder_decoder_cosine == pytest.approx([1, 0, -1], abs=1e-6)


# description length


def test_the_bits_of_a_code_are_its_entropies() -> None:
    # One latent on half of the rows with two bins equally likely: H(1/2) + 1/2 * 1 bit; one always in one bin: none.
    assert code_bits(torch.tensor([[2, 2], [8, 0]]), 8) == pytest.approx(1.5)
    assert code_bits(torch.tensor([[0, 0]]), 8) == 0


def test_rounding_a_code_costs_bits_and_error_as_computed_by_hand() -> None:
    codes = SparseLatents(torch.tensor([0, 1, 2, 2, 3]), torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0, 5.0]))
    x = codes.to_dense(2)
    found = sparse_length(codes, 2, 2, lambda sparse: sparse.to_dense(2), x)
    # Latent 0: bins [1, 2) and [2, 3], middles 1.5 and 2.5; latent 1 has one value, which is kept.
    entropy = 2 * -(0.25 * math.log2(0.25)) - 0.5 * math.log2(0.5) - 0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    assert found.bits == pytest.approx(entropy)
    assert found.fvu == pytest.approx(0.5 / float((x - x.mean(0)).square().sum()))
    dense = dense_length(x[:, :1], 64, lambda z: torch.cat([z, x[:, 1:]], 1), x, "raw")
    assert dense.bits == pytest.approx(1.5)
    assert dense.fvu < found.fvu


# pooling, labels


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return make_tiny_store(tmp_path / "s", n_examples=30, hook_points=["layers.1"])


def test_pooling_is_the_mean_over_the_rows_of_each_document(store: ActivationStore) -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=store.d_model(), d_sae=10, sparsity=Relu()))
    sae.requires_grad_(False)
    examples = np.arange(3, 20)
    found = pool(sae, store, examples, "layers.1", store_labels(store))
    document_of_row = np.asarray(store.examples.document_of)[store.row_example]
    in_examples = np.isin(np.asarray(store.row_example), examples)
    x = store.rows(0, store.n_rows).float()
    for i, document in enumerate(found.documents.tolist()):
        rows = np.flatnonzero(in_examples & (document_of_row == document))
        assert found.latents[i] == pytest.approx(sae.encode(x[rows]).mean(0).numpy(), rel=1e-4, abs=1e-5)
        assert found.raw[i] == pytest.approx(x[rows].mean(0).numpy(), rel=1e-4, abs=1e-5)
        assert found.n_rows[i] == len(rows)


def test_labels_of_a_file_replace_those_of_the_store_and_strangers_are_all_named(
    store: ActivationStore, tmp_path: Path
) -> None:
    documents = store.examples.documents
    good = tmp_path / "good.csv"
    good.write_text(f"document,label\n{documents[0]},x\n{documents[2]},a\n")
    labels = read_labels(good, store)
    assert labels.names == ["a", "x"]
    assert labels.of_document[:3].tolist() == [1, -1, 0]
    bad = tmp_path / "bad.csv"
    bad.write_text(f"nobody,x\n{documents[0]},a\n{documents[0]},b\nonly one\nnowhere,y\n")
    with pytest.raises(InputError) as refused:
        read_labels(bad, store)
    for part in (
        "1 lines are not",
        "2 documents are not in the store, first 'nobody', 'nowhere'",
        "1 documents have two",
    ):
        assert part in str(refused.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "absent.csv", store)


def test_probes_are_judged_on_other_documents_than_they_are_fitted_on(store: ActivationStore) -> None:
    everything = np.arange(30)
    fit, test = probe_split(store, everything, everything)
    document_of = np.asarray(store.examples.document_of)
    assert len(fit)
    assert len(test)
    assert not set(document_of[fit]) & set(document_of[test])
    assert [part.tolist() for part in probe_split(store, everything[:5], everything[5:])] == [
        everything[5:].tolist(),
        everything[:5].tolist(),
    ]
    assert Labels(names=[], of_document=np.full(99, -1)).of_examples(store, fit).tolist() == [-1] * len(fit)


def test_the_first_window_of_each_document_stands_for_it(store: ActivationStore) -> None:
    document_of = np.asarray(store.examples.document_of)
    chosen = first_of_each_document(store, np.arange(4, 30))
    assert sorted(set(document_of[4:30])) == sorted(document_of[chosen])
    assert all(i == np.flatnonzero(document_of[4:] == document_of[i])[0] + 4 for i in chosen)
    assert len(chosen) < 26


def test_any_autoencoders_active_latents_are_the_nonzero_ones() -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=4, d_sae=9, sparsity=Relu()))
    x = torch.from_numpy(RANDOM.normal(size=(5, 4))).float()
    active, n_latents = active_latents(sae, x)
    assert n_latents == 9
    assert torch.allclose(active.to_dense(9), sae.encode(x).detach(), atol=1e-6)


# pairs


def test_overlaps_and_pairs_agree_with_sets_of_rows(tmp_path: Path) -> None:
    index = make_tiny_index(tmp_path / "index")
    rows = [set(index.activations(f).rows.tolist()) for f in range(index.d_sae)]
    others = np.array([2, 4, 5, 7])
    found = overlaps(index, 4, others)
    assert found == pytest.approx([len(rows[4] & rows[g]) / len(rows[4]) for g in others])
    pairs = feature_pairs(index)
    # Feature 2 fires on every row, so whatever is its neighbour is inside it.
    assert pairs.n_splitting >= 1
    for pair in pairs.splitting:
        both = len(rows[pair.f] & rows[pair.g])
        assert pair.p_f_given_g == pytest.approx(both / len(rows[pair.g]), abs=1e-6)
        assert pair.p_f_given_g >= 0.9 > pair.p_g_given_f
    assert 2 in {pair.f for pair in pairs.splitting}
    for pair in pairs.absorption:
        assert len(rows[pair.f] & rows[pair.g]) <= 0.02 * len(rows[pair.f])
