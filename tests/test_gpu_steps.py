"""When a GPU's steps are sparse and how much room they get, played through on the CPU in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from saekit.errors import ConfigError
from saekit.kernels import Weights, reference
from saekit.kernels.entries import DenseEntries
from saekit.kernels.gpu import GpuSteps, relu_step, step_with_auxk
from saekit.kernels.lagged import LAG, Lagged
from saekit.kernels.triton_entries import TritonEntries

D_IN, D_SAE, N_ROWS = 4, 256, 20


def make_weights(bias: float) -> Weights:
    generator = torch.Generator().manual_seed(0)
    W_enc_T, W_dec = (torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64) for _ in range(2))
    b_enc, b_dec = torch.full((D_SAE,), bias, dtype=torch.float64), torch.zeros(D_IN, dtype=torch.float64)
    return Weights(*(part.requires_grad_() for part in (W_enc_T, b_enc, W_dec, b_dec)))


def make_batch() -> Tensor:
    return torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bias_for(density: float) -> float:
    """The encoder's bias with which this share of pre-activations is positive."""
    return -float((make_batch() @ make_weights(0).W_enc_T.detach().T).flatten().quantile(1 - density))


def floors() -> Tensor:
    return torch.zeros(D_SAE, dtype=torch.float64)


def test_a_lagged_number_is_that_of_so_many_steps_ago():
    lagged, seen = Lagged(), []
    assert lagged.read() is None
    for step in range(3 * LAG):
        lagged.note(torch.tensor(step), context=step + 100)
        note = lagged.read()
        assert note is not None
        assert note.context == note.value + 100
        seen.append(note.value)
    assert seen[:LAG] == [0] * LAG
    assert seen[LAG:] == list(range(1, 2 * LAG + 1))


def test_steps_become_sparse_when_few_entries_were_active_and_dense_again_when_many():
    steps, x = GpuSteps(max_density=0.1), make_batch()
    kinds = []
    for bias in [0.0] * 3 + [-50.0] * (LAG + 4) + [bias_for(0.15)] * (LAG + 4):
        entries = steps.entries_above(x, make_weights(bias), floors(), forced=False)
        kinds.append(isinstance(entries, TritonEntries))
    assert kinds == [False] * (3 + LAG) + [True] * (4 + LAG) + [False] * 4


def test_too_many_entries_for_the_room_are_counted_near_the_limit_and_an_error_later_far_from_it():
    x = make_batch()
    near = GpuSteps(max_density=0.1)
    # 8 % of entries: sparse, but more than a fourth of the room, so the count is looked at before it is relied on.
    weights = make_weights(bias_for(0.08))
    near.entries_above(x, weights, floors(), forced=False)
    assert isinstance(near.entries_above(x, weights, floors(), forced=False), TritonEntries)
    assert isinstance(near.entries_above(x, make_weights(0.0), floors(), forced=False), DenseEntries)
    far = GpuSteps(max_density=0.1)
    far.entries_above(x, make_weights(-50.0), floors(), forced=False)
    assert far.density(N_ROWS, D_SAE) == 0
    step = relu_step(far.entries_above(x, make_weights(0.0), floors(), forced=False), False)
    assert step.reconstruction.isnan()
    with pytest.raises(ConfigError, match="what the sparse step had room for"):
        for _ in range(LAG):
            far.entries_above(x, make_weights(-50.0), floors(), forced=False)


def test_a_forced_sparse_step_has_room_for_all():
    x, weights = make_batch(), make_weights(0.0)
    found = relu_step(GpuSteps(0.01).entries_above(x, weights, floors(), forced=True), True)
    expected = reference.relu_step(x, reference.pre_activations(x, weights), weights, True)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction)
    torch.testing.assert_close(found.penalty, expected.penalty)


def test_auxk_works_on_as_many_latents_as_may_be_dead_and_on_none_at_no_cost():
    x, weights, k = make_batch(), make_weights(0.0), 3
    since = torch.zeros(D_SAE, dtype=torch.int64)
    steps = GpuSteps()
    assert steps.n_dead_at_most(D_SAE) == D_SAE
    for step in range(45):
        steps.watch_dead(since, 800, N_ROWS)
        is_dead = since >= 800
        bound = steps.n_dead_at_most(D_SAE)
        assert int(is_dead.sum()) <= bound <= 16
        if step < 20:
            assert bound == 0
        since += N_ROWS
        since[10:] = 0
    found = step_with_auxk(steps.largest_of_rows(x, weights, k), k * N_ROWS, 5, is_dead)
    pre_acts = reference.pre_activations(x, weights)
    expected = reference.topk_step(x, pre_acts, weights, k, 5, is_dead)
    torch.testing.assert_close(found.penalty, expected.penalty)
    assert float(found.penalty.detach()) > 0
