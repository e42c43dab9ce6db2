"""The numbers of an evaluation against brute force in float64 NumPy and against cases with a known answer."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from saekit.autoencoders import (
    Autoencoder,
    KLDivergence,
    LossTerms,
    Relu,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    TopK,
)
from saekit.errors import InputError
from saekit.evaluation import (
    Baseline,
    CountingReconstruction,
    bootstrap_ratio,
    identity,
    knn_accuracy,
    mean_ablation,
    measure_reconstruction,
    next_token_losses,
    pca,
    random_dictionary,
    recovered_representation,
    representations,
)
from saekit.store.examples import Example


def rows(n: int = 300, d: int = 6, seed: int = 0, offset: float = 5.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.arange(1.0, d + 1) + offset


def chunks(x: Tensor, sizes: Sequence[int], per_document: int = 10) -> Iterator[tuple[Tensor, np.ndarray]]:
    documents = np.arange(len(x)) // per_document
    start = 0
    for size in sizes:
        yield x[start : start + size], documents[start : start + size]
        start += size


# reconstruction


@pytest.mark.parametrize("sizes", [[300], [7, 293], [100, 0, 199, 1]])
def test_reconstruction_agrees_with_brute_force_however_it_is_chunked(sizes: list[int]) -> None:
    x, weights = rows(), torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) / 4
    found = measure_reconstruction(lambda rows: rows * 0.7 + rows @ weights, chunks(x, sizes), torch.full((6,), 4.0))
    a = x.double().numpy()
    b = (x * 0.7 + x @ weights).double().numpy()
    mean = a.mean(0)
    assert found.n_tokens == 300
    assert found.n_documents == 30
    assert found.fvu == pytest.approx(np.square(a - b).sum() / np.square(a - mean).sum(), rel=1e-5)
    assert found.explained_variance == 1 - found.fvu
    assert found.mse == pytest.approx(np.square(a - b).mean(), rel=1e-5)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert found.cosine == pytest.approx(cosines.mean(), rel=1e-5)
    assert found.reconstruction_bias == pytest.approx(np.square(b).sum() / (a * b).sum(), rel=1e-5)
    centred = np.square(b - mean).sum() / ((a - mean) * (b - mean)).sum()
    assert found.reconstruction_bias_centred == pytest.approx(centred, rel=1e-5)


def test_the_identity_has_fvu_zero_and_no_bias() -> None:
    found = measure_reconstruction(identity().reconstruct, chunks(rows(), [300]), torch.zeros(6))
    assert (found.fvu, found.mse, found.explained_variance) == (0, 0, 1)
    assert (found.reconstruction_bias, found.reconstruction_bias_centred) == pytest.approx((1, 1))
    assert found.fvu_interval == (0, 0)


def test_the_mean_has_fvu_one_and_zero_has_more() -> None:
    x = rows()
    mean = measure_reconstruction(mean_ablation(x.mean(0)).reconstruct, chunks(x, [300]), torch.zeros(6))
    assert mean.fvu == pytest.approx(1, abs=1e-6)
    zero = measure_reconstruction(torch.zeros_like, chunks(x, [300]), torch.zeros(6))
    exact = x.double()
    assert zero.fvu == pytest.approx(float(exact.square().sum() / (exact - exact.mean(0)).square().sum()))


def test_a_constant_has_no_centred_bias_and_zero_none_at_all() -> None:
    x = rows()
    constant = measure_reconstruction(lambda x: torch.full_like(x, 4.0), chunks(x, [100, 200]), torch.zeros(6))
    zero = measure_reconstruction(torch.zeros_like, chunks(x, [100, 200]), torch.zeros(6))
    assert math.isnan(constant.reconstruction_bias_centred)
    assert math.isnan(zero.reconstruction_bias)
    assert constant.reconstruction_bias == pytest.approx(float(96 * 300 / (4 * x.sum())), rel=1e-5)


def test_halving_the_deviations_shows_as_a_centred_bias_of_a_half() -> None:
    x = rows()
    mean = x.mean(0)
    found = measure_reconstruction(lambda x: mean + (x - mean) / 2, chunks(x, [300]), torch.zeros(6))
    assert found.reconstruction_bias_centred == pytest.approx(0.5, rel=1e-5)
    assert found.fvu == pytest.approx(0.25, rel=1e-5)


def test_fvu_keeps_its_digits_beside_a_mean_a_thousand_times_the_spread() -> None:
    x = rows(offset=10_000)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x_hat = x.double() + noise
    found = measure_reconstruction(lambda rows: x_hat.float(), chunks(x, [300]), x.mean(0))
    exact, hat = x.double().numpy(), x_hat.float().double().numpy()
    expected = np.square(exact - hat).sum() / np.square(exact - exact.mean(0)).sum()
    assert found.fvu == pytest.approx(expected, rel=1e-9)


def test_no_rows_are_an_error_and_equal_rows_a_nan() -> None:
    with pytest.raises(InputError, match="no rows"):
        measure_reconstruction(identity().reconstruct, [], torch.zeros(2))
    found = measure_reconstruction(identity().reconstruct, chunks(torch.ones(20, 2), [20]), torch.ones(2))
    assert math.isnan(found.fvu)


# intervals


def test_the_interval_of_a_constant_ratio_is_that_ratio() -> None:
    below = np.random.default_rng(0).uniform(1, 2, 50)
    assert bootstrap_ratio(below * 0.25, below) == pytest.approx((0.25, 0.25))


def test_the_interval_of_a_mean_is_two_standard_errors_wide_on_each_side() -> None:
    values = np.random.default_rng(1).normal(3, 1, 400)
    low, high = bootstrap_ratio(values, np.ones(400), n_replicates=4000) or (0, 0)
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        below = generator.uniform(1, 3, 60)
        low, high = bootstrap_ratio(below * generator.normal(0.5, 0.2, 60), below, n_replicates=300, seed=trial) or (
            1,
            0,
        )
        hits += low <= 0.5 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_there_is_no_interval_for_one_document_and_the_seed_fixes_it_otherwise() -> None:
    assert bootstrap_ratio(np.ones(1), np.ones(1)) is None
    values = np.random.default_rng(3).normal(size=20)
    assert bootstrap_ratio(values, np.ones(20), seed=4) == bootstrap_ratio(values, np.ones(20), seed=4)
    assert bootstrap_ratio(values, np.ones(20), seed=4) != bootstrap_ratio(values, np.ones(20), seed=5)


# baselines


def measured_fvu(baseline: Baseline, x: Tensor) -> float:
    return measure_reconstruction(baseline.reconstruct, chunks(x, [len(x)]), x.mean(0)).fvu


@pytest.mark.parametrize("k", [0, 1, 3, 6, 9])
def test_pca_leaves_the_eigenvalues_it_drops(k: int) -> None:
    x = rows()
    covariance = torch.cov(x.double().T)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.double().numpy().T))
    expected = eigenvalues[: max(0, 6 - k)].sum() / eigenvalues.sum()
    baseline = pca(x.mean(0), covariance, k)
    assert baseline.k == min(k, 6)
    assert measured_fvu(baseline, x) == pytest.approx(expected, abs=1e-6)


def test_the_random_dictionary_is_the_least_squares_fit_of_the_chosen_directions() -> None:
    x = rows(n=40)
    baseline = random_dictionary(x.mean(0), d_sae=20, k=3, seed=1)
    directions = torch.nn.functional.normalize(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    got = baseline.reconstruct(x)
    for row, x_hat in zip(x - x.mean(0), got - x.mean(0), strict=True):
        basis = directions[(directions @ row).topk(3).indices].double().numpy()
        coefficients = np.linalg.lstsq(basis.T, row.double().numpy(), rcond=None)[0]
        assert x_hat.numpy() == pytest.approx(basis.T @ coefficients, abs=1e-3)


def test_the_random_dictionary_is_worse_than_pca_on_data_with_few_directions_and_near_exact_with_all() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(200, 3, generator=generator) @ torch.randn(3, 24, generator=generator)
    covariance = torch.cov(x.T)
    assert measured_fvu(pca(x.mean(0), covariance, 3), x) < 1e-6
    assert 0.2 < measured_fvu(random_dictionary(x.mean(0), d_sae=64, k=3), x) < 1
    assert measured_fvu(random_dictionary(x.mean(0), d_sae=64, k=24), x) < 0.01


# next-token faithfulness, on a "model" whose logits are written down

VOCABULARY = 7


def text(n_tokens: int, seed: int, drop: int = 1) -> Example:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, n_tokens).astype(np.int32)
    return Example(document=f"d{seed}", kept=np.arange(drop, n_tokens, dtype=np.int32), token_ids=ids)


class Bigrams:
    """Logits of a token are a row of a table; an intervention swaps the table. Padding is NaN: it must not be read."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tables = {
            name: 2 * torch.randn(VOCABULARY, VOCABULARY, generator=generator) for name in ("clean", "worse")
        }
        self.active = "clean"

    def logits(self, examples: Sequence[Example]) -> Tensor:
        longest = max(example.n_tokens for example in examples)
        out = torch.full((len(examples), longest, VOCABULARY), torch.nan)
        for row, example in zip(out, examples, strict=True):
            assert example.token_ids is not None
            row[: example.n_tokens] = self.tables[self.active][torch.from_numpy(example.token_ids).long()]
        return out

    @contextmanager
    def swapped(self, examples: Sequence[Example]) -> Iterator[None]:
        self.active = "worse"
        try:
            yield
        finally:
            self.active = "clean"

    @contextmanager
    def unchanged(self, examples: Sequence[Example]) -> Iterator[None]:
        yield


def test_next_token_losses_agree_with_a_loop_over_tokens() -> None:
    model = Bigrams()
    examples = [text(9, 0), text(4, 1), text(2, 2), text(6, 3, drop=3)]
    found = next_token_losses(
        model.logits,
        [(examples[:3], [10, 11, 11]), (examples[3:], [12])],
        {"spliced": model.unchanged, "zero": model.swapped},
    )
    expected: dict[str, list[float]] = {"clean": [], "zero": [], "kl": []}
    tables = {name: table.double().log_softmax(-1).numpy() for name, table in model.tables.items()}
    for example in examples:
        assert example.token_ids is not None
        for position in example.kept:
            if position + 1 == example.n_tokens:
                continue
            token, target = example.token_ids[position], example.token_ids[position + 1]
            p, q = tables["clean"][token], tables["worse"][token]
            expected["clean"].append(-p[target])
            expected["zero"].append(-q[target])
            expected["kl"].append(float((np.exp(p) * (p - q)).sum()))
    assert found.documents.tolist() == [10] * 7 + [11] * 2 + [12] * 2
    assert found.cross_entropy["clean"] == pytest.approx(expected["clean"], rel=1e-5)
    assert found.cross_entropy["zero"] == pytest.approx(expected["zero"], rel=1e-5)
    assert found.kl["zero"] == pytest.approx(expected["kl"], rel=1e-4)
    assert found.mean_kl("clean") == 0
    assert found.recovered("spliced", "zero") == 1
    assert found.recovered("zero", "zero") == 0
    assert found.kl_recovered("spliced", "zero") == 1
    assert found.kl_recovered("zero", "zero") == 0
    assert found.recovered_interval("spliced", "zero") == (1, 1)
    assert found.kl_quantiles("zero")[0] == pytest.approx(np.median(expected["kl"]), rel=1e-4)


def test_a_masked_vocabulary_entry_adds_nothing_to_the_kl() -> None:
    model = Bigrams()
    for table in model.tables.values():
        table[:, 3] = -torch.inf
    example = Example(document="d", kept=np.arange(1, 5, dtype=np.int32), token_ids=np.array([0, 1, 2, 4, 5], np.int32))
    found = next_token_losses(model.logits, [([example], [0])], {"zero": model.swapped})
    assert np.isfinite(found.kl["zero"]).all()
    assert found.mean_kl("zero") > 0


def test_examples_without_a_predicted_token_are_an_error() -> None:
    model = Bigrams()
    with pytest.raises(InputError, match="No token is predicted"):
        next_token_losses(model.logits, [([text(2, 0, drop=1)], [0])], {})


# images


def test_knn_agrees_with_a_loop_and_a_tie_goes_to_the_nearer_neighbours() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 15)
    x = generator.normal(size=(60, 8)) + np.eye(8)[labels] * 2
    accuracy, right = knn_accuracy(torch.from_numpy(x), labels, k=5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in range(60):
        others = np.array([j for j in range(60) if j != i])
        nearest = others[np.argsort(-(unit[others] @ unit[i]))[:5]]
        votes = np.bincount(labels[nearest], minlength=4)
        best = np.flatnonzero(votes == votes.max())
        vote = max(best, key=lambda label: (unit[nearest[labels[nearest] == label]] @ unit[i]).sum())
        assert right[i] == (vote == labels[i])
    assert accuracy == pytest.approx(right.mean())
    assert accuracy > 0.5


def test_knn_never_counts_the_example_itself() -> None:
    x = torch.eye(4)
    accuracy, _ = knn_accuracy(x, np.arange(4), k=1)
    assert accuracy == 0
    with pytest.raises(InputError, match="at least two"):
        knn_accuracy(x[:1], np.zeros(1, np.int64))


def test_representations_are_taken_clean_and_changed_and_the_recovered_share_is_that_of_squares() -> None:
    state = {"shift": 0.0}

    @contextmanager
    def shifted(examples: Sequence[Example]) -> Iterator[None]:
        state["shift"] = 1.0
        yield
        state["shift"] = 0.0

    batches = [[text(3, 0), text(4, 1)], [text(5, 2)]]
    found = representations(
        lambda examples: torch.tensor([[e.n_tokens + state["shift"], 0.0] for e in examples]), batches, {"sae": shifted}
    )
    assert found["clean"].tolist() == [[3, 0], [4, 0], [5, 0]]
    assert found["sae"].tolist() == [[4, 0], [5, 0], [6, 0]]
    ablated = found["clean"] + 2
    assert recovered_representation(found["clean"], found["clean"], ablated) == 1
    assert recovered_representation(found["clean"], ablated, ablated) == 0
    assert recovered_representation(found["clean"], found["sae"], ablated) == pytest.approx(1 - 3 / 24)


# latents


def small_sae(sparsity: Relu | KLDivergence | TopK) -> SparseAutoencoder:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=6, d_sae=40, sparsity=sparsity, dead_after_tokens=100))
    x = rows()
    sae.set_input_moments_(x.mean(0), float((x - x.mean(0)).square().sum(-1).mean()))
    return sae


@pytest.mark.parametrize("sparsity", [Relu(), TopK(k=2), TopK(k=1), KLDivergence()], ids=str)
def test_counting_does_not_change_the_reconstruction_and_counts_what_encode_gives(
    sparsity: Relu | KLDivergence | TopK,
) -> None:
    sae, x = small_sae(sparsity), rows()
    counting = CountingReconstruction(sae)
    x_hat = torch.cat([counting(part) for part in x.split([100, 0, 200])])
    latents = sae.encode(x).detach()
    assert torch.allclose(x_hat, sae(x).detach(), rtol=1e-4, atol=1e-4)
    active = latents > sae.sparsifier.active_above
    use = counting.use()
    assert use.n_latents == 40
    assert use.density == pytest.approx(active.double().mean(0).numpy())
    assert use.l0 == pytest.approx(float(active.sum() / 300))
    assert use.l1 == pytest.approx(float((latents * active).sum() / 300), rel=1e-5)
    assert use.silent_share == pytest.approx(float((~active.any(0)).double().mean()))
    assert use.dense_share == pytest.approx(float((active.double().mean(0) > 0.1).double().mean()))


def test_the_dead_share_is_that_of_training_and_unknown_when_training_was_short() -> None:
    sae, x = small_sae(TopK(k=1)), rows()
    counting = CountingReconstruction(sae)
    counting(x)
    assert counting.use().dead_share is None
    sae.n_tokens_seen.fill_(1000)
    sae.tokens_since_fired[:10] = 100
    assert counting.use().dead_share == 0.25


def test_a_dense_autoencoder_is_counted_too_and_nothing_is_an_error() -> None:
    class Doubling(Autoencoder):
        def encode(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.zeros_like(x)], -1)

        def decode(self, latents: Tensor) -> Tensor:
            return latents.chunk(2, -1)[0]

        def training_loss(self, x: Tensor) -> LossTerms:
            raise AssertionError

    counting = CountingReconstruction(Doubling(None))
    with pytest.raises(InputError, match="No rows"):
        counting.use()
    assert torch.equal(counting(rows()), rows())
    assert (counting.use().l0, counting.use().silent_share, counting.use().dead_share) == (6, 0.5, None)


def test_decoding_active_latents_equals_the_dense_decoder_also_for_rows_without_any() -> None:
    sae, x = small_sae(Relu()), rows(n=20)
    sae.b_enc.data.sub_(1.5)
    active = sae.encode_sparse(x)
    assert (active.row_offsets.diff() == 0).any()
    assert torch.allclose(sae.decode_sparse(active), sae.decode(sae.encode(x)), rtol=1e-5, atol=1e-4)
    empty = sae.encode_sparse(x[:0])
    assert sae.decode_sparse(empty).shape == (0, 6)
