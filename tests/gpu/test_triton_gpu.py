"""The sparse step on CUDA at its real width against the dense one, its memory, and the paths it takes."""

import logging

import pytest
import torch

import saekit as sk
from saekit.training.optim import make_optimizer, take_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

D_IN, D_SAE, N_ROWS = 768, 24576, 1024
SPARSITIES = [
    sk.Relu(l1=1.0),
    sk.TopK(k=32),
    sk.BatchTopK(k=32),
    sk.MatryoshkaBatchTopK(k=32),
    sk.JumpRelu(),
    sk.Gated(),
]


def make(sparsity: object, kernel: str) -> sk.SparseAutoencoder:
    """An autoencoder with about 60 positive pre-activations a row, a tenth of whose latents are dead."""
    config = sk.SparseAutoencoderConfig(d_in=D_IN, d_sae=D_SAE, sparsity=sparsity, kernel=kernel)
    sae = sk.SparseAutoencoder(config).cuda()
    with torch.no_grad():
        sae.b_enc.sub_(2.8)
        sae.tokens_since_fired[::10] = 1 << 40
    return sae


def batch() -> torch.Tensor:
    return torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(0)).cuda()


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda sparsity: type(sparsity).__name__)
def test_losses_and_gradients_of_the_sparse_step_are_the_dense_ones_at_full_width(sparsity):
    torch.set_float32_matmul_precision("highest")
    dense, sparse = make(sparsity, "dense"), make(sparsity, "sparse")
    a, b = dense.training_loss(batch()), sparse.training_loss(batch())
    assert b.total.item() == pytest.approx(a.total.item(), rel=1e-4)
    a.total.backward()
    b.total.backward()
    for (name, parameter), other in zip(dense.named_parameters(), sparse.parameters(), strict=True):
        # An entry at the edge of the k largest may swap: the norm of the difference, not its maximum.
        assert float((parameter.grad - other.grad).norm()) <= 1e-3 * float(parameter.grad.norm()), name


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=lambda sparsity: type(sparsity).__name__)
def test_the_same_step_gives_the_same_bits(sparsity):
    first, second = make(sparsity, "auto"), make(sparsity, "auto")
    for sae in (first, second):
        optimizer = make_optimizer(sae, 1e-4, (0.9, 0.999))
        for _ in range(12):
            sae.training_loss(batch()).total.backward()
            take_step(sae, optimizer, 1e-4, 1.0)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_l1_training_goes_from_dense_to_sparse_and_says_so(caplog):
    sae = make(sk.Relu(), "auto")
    with caplog.at_level(logging.INFO, logger="saekit.kernels"):
        with torch.no_grad():
            sae.b_enc.add_(2.8)
        sae.training_loss(batch()).total.backward()
        with torch.no_grad():
            sae.b_enc.sub_(2.8)
        for _ in range(12):
            sae.training_loss(batch()).total.backward()
    assert [record.getMessage().split(" path")[0] for record in caplog.records] == [
        "Training takes the dense",
        "Training takes the sparse",
    ]


def test_memory_beyond_weights_moments_and_one_matrix_is_small():
    before = torch.cuda.memory_allocated()
    sae = make(sk.TopK(k=32, auxk=0), "auto")
    optimizer = make_optimizer(sae, 1e-4, (0.9, 0.999))
    x = torch.randn(4096, D_IN, device="cuda")
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        sae.training_loss(x).total.backward()
        take_step(sae, optimizer, 1e-4, 1.0)
    needed = 16 * sum(p.numel() for p in sae.parameters()) + 4 * 4096 * D_SAE
    assert torch.cuda.max_memory_allocated() - before < 1.15 * needed
