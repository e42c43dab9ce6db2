"""The loader: a true shuffle of all rows, the same from every cursor, quick to end, and no NaN gets through."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import make_tiny_store

from saekit.errors import ConfigError, StoreError
from saekit.store import ActivationStore
from saekit.store.loader import bits_are_finite
from saekit.store.shuffle import Permutation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """480 rows in 3 shards; row i holds i, exactly representable in fp32."""
    rows = np.repeat(np.arange(480, dtype=np.float32)[:, None], 4, axis=1)
    return make_tiny_store(tmp_path_factory.mktemp("s") / "s", kind="image", d=4, rows=rows, dtype="fp32")


def numbers(batches: list[torch.Tensor]) -> list[int]:
    """The row numbers that the rows of `store` hold."""
    return [int(value) for batch in batches for value in batch[:, 0]]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 100, 4096, 99_991])
def test_a_permutation_has_every_number_once(n: int) -> None:
    order = Permutation(n, seed=7, stream=3).at(np.arange(n))
    assert np.array_equal(np.sort(order), np.arange(n))


def test_a_permutation_can_be_entered_anywhere() -> None:
    permutation = Permutation(100_003, seed=1)
    whole = permutation.at(np.arange(100_003))
    assert np.array_equal(permutation.at(np.array([99_999, 5, 50_000])), whole[[99_999, 5, 50_000]])
    large = Permutation(2**40 + 7, seed=1).at(np.arange(2**40 - 3, 2**40 + 7))
    assert large.min() >= 0
    assert large.max() < 2**40 + 7


def test_permutations_are_uniform_and_differ_by_seed_and_epoch() -> None:
    n, n_draws = 8, 400
    counts = np.zeros((n, n))
    for epoch in range(n_draws):
        counts[np.arange(n), Permutation(n, 0, epoch).at(np.arange(n))] += 1
    chi_squared = ((counts - n_draws / n) ** 2 / (n_draws / n)).sum()
    assert chi_squared < 90  # 49 degrees of freedom: 99.9 % of uniform draws are below 85.4
    orders = [Permutation(1000, seed, epoch).at(np.arange(1000)) for seed in (0, 1) for epoch in (0, 1)]
    agreements = [int((orders[i] == orders[j]).sum()) for i in range(4) for j in range(i)]
    assert max(agreements) < 10


def test_neighbours_on_disk_are_spread_over_the_epoch() -> None:
    n = 100_000
    order = Permutation(n, seed=0).at(np.arange(n))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.015
    gaps = np.abs(np.diff(order))
    assert gaps.mean() == pytest.approx(n / 3, rel=0.02)


def test_an_epoch_has_every_row_once_in_a_new_order_each_time(store: ActivationStore) -> None:
    with store.batches(100, seed=3, n_tokens=3 * 480) as loader:
        seen = numbers(list(loader))
    epochs = [seen[:480], seen[480:960], seen[960:]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(480))
    assert epochs[0] != epochs[1] != epochs[2]
    for point, epoch in enumerate(epochs):
        assert epoch == Permutation(480, 3, point).at(np.arange(480)).tolist()


def test_batches_are_full_across_epochs_and_the_last_is_the_rest(store: ActivationStore) -> None:
    assert [len(batch) for batch in store.batches(128, n_tokens=1000)] == [128] * 7 + [104]
    assert [len(batch) for batch in store.batches(1000, n_tokens=1500)] == [1000, 500]


@pytest.mark.parametrize("block_bytes", [1, 2000, 2**26])
def test_the_order_depends_on_the_seed_alone(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    expected = numbers(list(store.batches(64, seed=5, n_tokens=960)))
    monkeypatch.setattr("saekit.store.loader.BLOCK_BYTES", block_bytes)
    assert numbers(list(store.batches(37, seed=5, n_tokens=960, prefetch=4))) == expected
    assert numbers(list(store.batches(64, seed=6, n_tokens=960))) != expected


@pytest.mark.parametrize("n_batches", [0, 1, 4, 5, 9, 14])
def test_a_loader_resumes_with_the_very_next_batch(store: ActivationStore, n_batches: int) -> None:
    with store.batches(100, seed=2, n_tokens=1500) as whole:
        expected = numbers(list(whole))
    with store.batches(100, seed=2, n_tokens=1500) as first:
        head = numbers([next(first) for _ in range(n_batches)])
        state = first.state_dict()
    with store.batches(100, seed=2, n_tokens=1500) as second:
        next(second)
        second.load_state_dict(state)
        assert second.epoch == n_batches * 100 // 480
        assert head + numbers(list(second)) == expected


def test_a_state_of_another_reading_is_refused(store: ActivationStore, tmp_path: Path) -> None:
    state = store.batches(10, seed=1).state_dict()
    with pytest.raises(StoreError, match="seed: 1 in the state, 2 here"):
        store.batches(10, seed=2).load_state_dict(state)
    other = make_tiny_store(tmp_path / "other", kind="image", d=4, dtype="fp32")
    with pytest.raises(StoreError, match="store_hash"):
        other.batches(10, seed=1).load_state_dict(state)


def test_rows_can_be_restricted(store: ActivationStore) -> None:
    chosen = np.arange(480)[::7]
    with store.batches(16, rows=chosen, n_tokens=2 * len(chosen)) as loader:
        seen = numbers(list(loader))
    assert sorted(seen[: len(chosen)]) == chosen.tolist()
    assert sorted(seen[len(chosen) :]) == chosen.tolist()
    with pytest.raises(ConfigError, match="rows is empty"):
        store.batches(16, rows=chosen[:0])


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_batches_have_the_stored_type_unless_another_is_asked_for(tmp_path: Path, dtype: str) -> None:
    store = make_tiny_store(tmp_path / "s", dtype=dtype)
    with store.batches(8) as loader, store.batches(8, dtype=torch.float64) as converted:
        first, second = next(loader), next(converted)
    assert first.dtype == store.dtype
    assert torch.equal(first.double(), second)


def test_batches_are_not_overwritten_by_later_ones(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saekit.store.loader.BLOCK_BYTES", 4000)
    with store.batches(32, n_tokens=480) as loader:
        kept = list(loader)
    assert sorted(numbers(kept)) == list(range(480))


def test_a_store_larger_than_memory_gives_the_same_batches(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = numbers(list(store.batches(64, n_tokens=480)))
    monkeypatch.setattr("saekit.store.loader._available_memory", lambda: 1000)
    assert numbers(list(store.batches(64, n_tokens=480))) == expected


def test_memory_of_batches_that_are_gone_is_used_again(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saekit.store.loader.BLOCK_ROWS", 64)
    with store.batches(32, n_tokens=32 * 200) as loader:
        addresses = {batch.data_ptr() for batch in loader}
    assert len(addresses) < 20


def test_closing_and_forgetting_a_loader_ends_its_threads(store: ActivationStore) -> None:
    before = threading.active_count()
    with store.batches(16) as loader:
        next(loader)
        assert threading.active_count() > before
    assert threading.active_count() == before
    forgotten = store.batches(16)
    next(forgotten)
    del forgotten
    gc.collect()
    assert threading.active_count() == before


def test_a_closed_loader_goes_on_where_it_was(store: ActivationStore) -> None:
    expected = numbers(list(store.batches(50, n_tokens=200)))
    loader = store.batches(50, n_tokens=200)
    seen = [next(loader)]
    loader.close()
    assert numbers(seen + list(loader)) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_bad_row_is_named_by_shard_and_row(tmp_path: Path, dtype: str, value: float) -> None:
    path = make_tiny_store(tmp_path / "s", kind="image", d=4, dtype=dtype).path
    file = path / "shards" / "00001" / "layers.1.bin"
    torch_dtype = ActivationStore.open(path).dtype
    rows = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch_dtype).view(-1, 4).clone()
    rows[150, 2] = value
    file.write_bytes(rows.view(torch.uint8).numpy().tobytes())
    with pytest.raises(StoreError, match=r"shard 00001, row 150 \(row 350 of the store, example 17\)"):
        list(ActivationStore.open(path).batches(64, n_tokens=480))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_finite_check_knows_every_bit_pattern(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    if dtype == torch.float32:
        wide = (bits.to(torch.int32) << 16) | 0x0101
        bits = torch.cat([wide, torch.tensor([0x7F800000, -(2**31), -0x00800000], dtype=torch.int32)])
    finite = torch.isfinite(bits.view(dtype))
    assert int((~finite).sum()) > 0
    assert bits_are_finite(bits[finite].numpy(), dtype)
    assert not any(bits_are_finite(pattern[None].numpy(), dtype) for pattern in bits[~finite])


def test_impossible_numbers_are_refused(store: ActivationStore) -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        store.batches(0)
    with pytest.raises(ConfigError, match="n_tokens=0"):
        store.batches(4, n_tokens=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_a_gpu_are_those_of_the_cpu(store: ActivationStore) -> None:
    with store.batches(64, n_tokens=960) as here, store.batches(64, n_tokens=960, device="cuda") as there:
        for a, b in zip(here, there, strict=True):
            assert b.is_cuda
            assert torch.equal(a, b.cpu())
