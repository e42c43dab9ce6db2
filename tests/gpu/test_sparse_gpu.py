"""Training steps on CUDA: the CPU's losses and gradients, and no wait for the device in between."""

import pytest
import torch

import saekit as sk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.parametrize(
        "sparsity",
        [
            sk.Relu(),
            sk.KLDivergence(),
            sk.TopK(k=8),
            sk.BatchTopK(k=8),
            sk.MatryoshkaBatchTopK(k=8),
            sk.JumpRelu(),
            sk.Gated(),
        ],
        ids=lambda sparsity: type(sparsity).__name__,
    ),
]


def make(sparsity) -> sk.SparseAutoencoder:
    config = sk.SparseAutoencoderConfig(d_in=64, d_sae=512, sparsity=sparsity, dead_after_tokens=100)
    sae = sk.SparseAutoencoder(config)
    sae.tokens_since_fired[::5] = 1000
    return sae


def test_loss_and_gradients_are_the_cpu_ones(sparsity):
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here, there = make(sparsity).double(), make(sparsity).double().cuda()
    a, b = here.training_loss(x), there.training_loss(x.cuda())
    a.total.backward()
    b.total.backward()
    assert b.total.item() == pytest.approx(a.total.item(), rel=1e-9)
    for (name, parameter), other in zip(here.named_parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(other.grad.cpu(), parameter.grad, rtol=1e-8, atol=1e-8, msg=name)
    for (name, buffer), other in zip(here.named_buffers(), there.buffers(), strict=True):
        torch.testing.assert_close(other.cpu(), buffer, rtol=1e-8, atol=1e-8, msg=name)


def test_encode_sparse_is_the_cpu_one(sparsity):
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here = make(sparsity).double().encode_sparse(x)
    there = make(sparsity).double().cuda().encode_sparse(x.cuda())
    assert torch.equal(there.row_offsets.cpu(), here.row_offsets)
    assert torch.equal(there.latents.cpu(), here.latents)
    torch.testing.assert_close(there.values.cpu(), here.values, rtol=1e-9, atol=1e-9)


def test_a_step_does_not_wait_for_the_device(sparsity):
    sae, x = make(sparsity).cuda(), torch.randn(128, 64, device="cuda")
    optimizer = torch.optim.Adam(sae.parameters(), fused=True)
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = sae.training_loss(x)
            loss.total.backward()
            sae.project_gradients_()
            optimizer.step()
            sae.project_()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(value.device.type == "cuda" for value in loss.terms.values())
