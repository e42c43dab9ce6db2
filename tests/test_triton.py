"""The Triton kernels against dense autograd: on the GPU if there is one, else on the CPU in Triton's interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from saekit.kernels import Weights, reference, triton_ops
from saekit.kernels.adam import triton_step_
from saekit.kernels.entries import DenseEntries, Entries
from saekit.kernels.triton_entries import TritonEntries, largest_places

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Several tiles in both directions of the code, and no more: the interpreter takes its time.
D_IN, D_SAE, N_ROWS = 6, 144, 35


def make_weights(dtype: torch.dtype = torch.float64, d_in: int = D_IN, d_sae: int = D_SAE) -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = (d_sae, d_in), (d_sae,), (d_sae, d_in), (d_in,)
    W_enc_T, b_enc, W_dec, b_dec = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    parts = W_enc_T / d_in**0.5, 0.3 * b_enc - 1.2, W_dec, 0.2 * b_dec
    return Weights(*(part.to(DEVICE).requires_grad_() for part in parts))


def make_batch(dtype: torch.dtype = torch.float64, n_rows: int = N_ROWS, d_in: int = D_IN) -> Tensor:
    return torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(1), dtype=dtype).to(DEVICE)


def dead_third() -> Tensor:
    return torch.arange(D_SAE, device=DEVICE) % 3 == 0


def pre_activations(x: Tensor, weights: Weights) -> Tensor:
    with torch.no_grad():
        return reference.pre_activations(x, weights)


def relu(entries: Entries, weights: Weights) -> reference.Step:
    """The L1 step, weighted by the decoder's norms, with a latent-wise factor and a term of whole rows besides."""
    factor = 1 + 0.1 * weights.b_enc
    latents = entries.pre_acts.relu() * entries.per_entry(factor)
    decoded = entries.decode(latents, with_norms=True)
    l1 = entries.mean_sum(latents * entries.per_entry(decoded.norms))
    return entries.step(decoded, l1 + entries.per_row(latents).square().mean(), latents)


def with_auxk(entries: Entries, weights: Weights, latents: Tensor) -> reference.Step:
    decoded = entries.decode(latents)
    return entries.step(decoded, entries.auxk(decoded.x_hat, 7, dead_third()), latents)


def matryoshka(entries: Entries, weights: Weights, latents: Tensor) -> reference.Step:
    decoded = entries.decode(latents, prefixes=(10, 50))
    return entries.step(decoded, decoded.prefix_error, latents)


def assert_same(found: reference.Step, expected: reference.Step, weights: Weights, tolerance: float = 1e-12) -> None:
    for name in ("reconstruction", "penalty", "x_hat"):
        a, b = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=tolerance, msg=name)
    assert torch.equal(found.n_fired, expected.n_fired)
    n = int(found.latents.row_offsets[-1])
    trimmed = type(found.latents)(found.latents.row_offsets, found.latents.latents[:n], found.latents.values[:n])
    torch.testing.assert_close(trimmed.to_dense(D_SAE), expected.latents, rtol=0, atol=tolerance)
    assert not found.latents.values[n:].any()
    losses = [1.3 * step.reconstruction + 0.7 * step.penalty for step in (found, expected)]
    of_found, of_expected = (torch.autograd.grad(loss, weights) for loss in losses)
    for name, a, b in zip(Weights._fields, of_found, of_expected, strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max())), name


@pytest.mark.parametrize("capacity", [D_SAE * N_ROWS, 900], ids=["room for all", "room for about all"])
def test_entries_above_a_floor_equal_dense_autograd(capacity):
    x, weights = make_batch(), make_weights()
    matrix, floors = pre_activations(x, weights), torch.zeros(D_SAE, dtype=torch.float64, device=DEVICE)
    assert 300 < int((matrix > 0).sum()) < capacity
    entries = TritonEntries.above(x, weights, matrix, floors, capacity)
    assert_same(relu(entries, weights), relu(DenseEntries(x, weights), weights), weights)


def test_latents_with_many_entries_are_summed_in_parts(monkeypatch):
    monkeypatch.setattr(triton_ops, "SEGMENT", 8)
    x, weights = make_batch(), make_weights()
    with torch.no_grad():
        weights.b_enc[3].add_(10)
        weights.b_enc[4].sub_(10)
    matrix, floors = pre_activations(x, weights), torch.zeros(D_SAE, dtype=torch.float64, device=DEVICE)
    assert (matrix[:, 3] > 0).all()
    assert (matrix[:, 4] < 0).all()
    entries = TritonEntries.above(x, weights, matrix, floors, 1200)
    assert_same(relu(entries, weights), relu(DenseEntries(x, weights), weights), weights)


@pytest.mark.parametrize("k", [1, 5])
def test_the_largest_of_each_row_and_auxk_equal_dense_autograd(k):
    x, weights = make_batch(), make_weights()
    entries = TritonEntries.largest_of_rows(x, weights, pre_activations(x, weights), k, n_dead_at_most=50)
    dense = DenseEntries(x, weights)
    expected = with_auxk(dense, weights, reference.topk_latents(dense.pre_acts, k))
    assert_same(with_auxk(entries, weights, entries.largest(k * N_ROWS)), expected, weights)


def test_the_largest_of_a_batch_and_prefixes_equal_dense_autograd():
    x, weights, n = make_batch(), make_weights(), 90
    entries = TritonEntries.largest_of_batch(x, weights, pre_activations(x, weights), n)
    dense = DenseEntries(x, weights)
    assert_same(matryoshka(entries, weights, entries.largest(n)), matryoshka(dense, weights, dense.largest(n)), weights)
    assert float(matryoshka(entries, weights, entries.largest(n)).penalty.detach()) > 0


def test_a_step_with_nothing_active_equals_dense_autograd():
    x, weights = make_batch(), make_weights()
    with torch.no_grad():
        weights.b_enc.sub_(100)
    floors = torch.zeros(D_SAE, dtype=torch.float64, device=DEVICE)
    entries = TritonEntries.above(x, weights, pre_activations(x, weights), floors, 100)
    assert int(entries.n_found) == 0
    assert_same(relu(entries, weights), relu(DenseEntries(x, weights), weights), weights)


def test_gradients_are_slopes():
    x, weights = make_batch(n_rows=3, d_in=2), make_weights(d_in=2, d_sae=5)

    def losses(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        w = Weights(*parameters)
        floors = torch.zeros(5, dtype=torch.float64, device=DEVICE)
        step = relu(TritonEntries.above(x, w, pre_activations(x, w), floors, 15), w)
        return step.reconstruction, step.penalty

    assert torch.autograd.gradcheck(losses, tuple(weights))


def test_a_frozen_decoder_gets_no_gradient():
    x, weights = make_batch(), make_weights()
    entries = TritonEntries.largest_of_rows(x, weights, pre_activations(x, weights), 4)
    entries.decode(entries.largest(4 * N_ROWS), frozen=True).error.backward()
    assert weights.W_dec.grad is None
    assert float(weights.W_enc_T.grad.abs().max()) > 0


def test_in_float32_the_difference_is_rounding():
    x, weights = make_batch(torch.float32), make_weights(torch.float32)
    floors = torch.zeros(D_SAE, device=DEVICE)
    found = relu(TritonEntries.above(x, weights, pre_activations(x, weights), floors, 1200), weights)
    expected = relu(DenseEntries(x, weights), weights)
    assert_same(found, expected, weights, 3e-6)


def test_entries_without_room_make_the_loss_nan_and_touch_nothing_else():
    x, weights = make_batch(), make_weights()
    floors = torch.zeros(D_SAE, dtype=torch.float64, device=DEVICE)
    entries = TritonEntries.above(x, weights, pre_activations(x, weights), floors, 100)
    assert bool(entries.overflow)
    assert int(entries.n_found) > 100
    step = relu(entries, weights)
    assert step.reconstruction.isnan()
    step.reconstruction.backward()


def test_nan_activations_make_the_loss_nan():
    x, weights = make_batch(), make_weights()
    x[3, 2] = torch.nan
    floors = torch.zeros(D_SAE, dtype=torch.float64, device=DEVICE)
    entries = TritonEntries.above(x, weights, pre_activations(x, weights), floors, 1200)
    assert relu(entries, weights).reconstruction.isnan()
    entries = TritonEntries.largest_of_rows(x, weights, pre_activations(x, weights), 4)
    assert with_auxk(entries, weights, entries.largest(4 * N_ROWS)).reconstruction.isnan()


def test_second_derivatives_are_refused():
    x, weights = make_batch(), make_weights()
    entries = TritonEntries.largest_of_rows(x, weights, pre_activations(x, weights), 4)
    error = entries.decode(entries.largest(4 * N_ROWS)).error
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(error, weights.W_dec, create_graph=True)


@pytest.mark.parametrize("n", [1, 3, 60, 1600])
def test_the_largest_places_hold_the_largest_values(n):
    matrix = torch.randn(5, 1600, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    matrix[1] = 1.0
    matrix[2, ::16] += 5
    matrix[3, :32] += 9
    places = largest_places(matrix, n)
    assert all(len(set(row.tolist())) == n for row in places)
    torch.testing.assert_close(matrix.gather(1, places).sort(1).values, matrix.sort(1).values[:, -n:], rtol=0, atol=0)


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_the_optimizer_pass_is_project_clip_adam_renormalise(clip):
    torch.manual_seed(0)
    made = []
    for _ in range(2):
        parameters = [torch.randn(5, 7, device=DEVICE), torch.randn(5, 7, device=DEVICE), torch.randn(5, device=DEVICE)]
        made.append([torch.nn.Parameter(p.detach().clone()) for p in (made[0] if made else parameters)])
    with torch.no_grad():
        for parameters in made:
            parameters[0].div_(parameters[0].norm(dim=1, keepdim=True))
    optimizers = [torch.optim.Adam(parameters, lr=1e-2, fused=True) for parameters in made]
    for step in range(4):
        for one in zip(*made, strict=True):
            gradient = torch.randn_like(one[0])
            for p in one:
                p.grad = gradient.clone()
        if step == 0:
            for parameters, optimizer in zip(made, optimizers, strict=True):
                optimizer.step()
                with torch.no_grad():
                    parameters[0].div_(parameters[0].norm(dim=1, keepdim=True))
            continue
        with torch.no_grad():
            triton_step_(optimizers[0], made[0], {id(made[0][0])}, clip)
            unit = made[1][0]
            unit.grad -= (unit.grad * unit).sum(1, keepdim=True) * unit
            if clip > 0:
                torch.nn.utils.clip_grad_norm_(made[1], clip)
            optimizers[1].step()
            unit.div_(unit.norm(dim=1, keepdim=True))
        for a, b in zip(*made, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


COMPILE = Path(__file__).with_name("compile_triton.py")


def test_every_kernel_compiles_for_an_h100():
    done = subprocess.run([sys.executable, str(COMPILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = set(done.stdout.split())
    kernels = {name for name in vars(triton_ops) if name.startswith(("_count", "_fill", "_sum"))}
    assert compiled == kernels | {"_row_statistics", "_adam_rows"}
