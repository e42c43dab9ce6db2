"""The optimizer step in one go against the plain calls that it stands for."""

import pytest
import torch
from torch import Tensor, nn

from saekit.autoencoders import Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.kernels import adam, adam_step_
from saekit.training.optim import make_optimizer, take_step

D_IN, D_SAE = 10, 70


def make_sae(decoder_norm: str) -> SparseAutoencoder:
    config = SparseAutoencoderConfig(d_in=D_IN, d_sae=D_SAE, sparsity=Relu(l1=0.1), decoder_norm=decoder_norm)
    return SparseAutoencoder(config).double()


def batches(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(30, D_IN, generator=generator, dtype=torch.float64) for _ in range(n)]


def plain_step(sae: SparseAutoencoder, optimizer: torch.optim.Optimizer, clip: float) -> None:
    sae.project_gradients_()
    if clip > 0:
        nn.utils.clip_grad_norm_(sae.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    sae.project_()


@pytest.mark.parametrize("decoder_norm", ["unit", "free"])
@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6], ids=["no clipping", "clipped", "below the limit"])
def test_the_step_in_one_go_is_project_clip_step_renormalise(decoder_norm, clip, monkeypatch):
    monkeypatch.setattr(adam, "_BLOCK_ENTRIES", 16 * D_IN)
    folded, plain = make_sae(decoder_norm), make_sae(decoder_norm)
    optimizers = [make_optimizer(sae, 1e-2, (0.9, 0.99)) for sae in (folded, plain)]
    for x in batches(5):
        for sae in (folded, plain):
            sae.training_loss(x).total.backward()
        take_step(folded, optimizers[0], 1e-2, clip)
        plain_step(plain, optimizers[1], clip)
        for (name, a), b in zip(folded.named_parameters(), plain.parameters(), strict=True):
            assert a.grad is None
            # The scale is held in float32 by torch's kernel.
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)
    steps = [
        float(optimizer.state[sae.W_dec]["step"]) for sae, optimizer in zip((folded, plain), optimizers, strict=True)
    ]
    assert steps == [5, 5]


def test_a_nan_gradient_reaches_the_weights_and_is_not_clipped_away():
    sae = make_sae("unit")
    optimizer = make_optimizer(sae, 1e-2, (0.9, 0.99))
    first, second = batches(2)
    sae.training_loss(first).total.backward()
    take_step(sae, optimizer, 1e-2, 1.0)
    second[0, 0] = torch.nan
    sae.training_loss(second).total.backward()
    take_step(sae, optimizer, 1e-2, 1.0)
    assert sae.W_enc_T.isnan().any()


def test_it_is_left_to_the_plain_calls_before_there_are_moments_and_where_adam_is_not_plain():
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=D_IN, d_sae=D_SAE, sparsity=TopK(k=4)))
    for options in ({"fused": True}, {"fused": False}, {"fused": True, "weight_decay": 0.1}):
        optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2, **options)
        for expected in (False, options == {"fused": True}):
            sae.training_loss(batches(1)[0].float()).total.backward()
            before = sae.W_dec.detach().clone()
            assert adam_step_(optimizer, sae.unit_rows, 1.0) is expected
            assert torch.equal(before, sae.W_dec) is not expected
            optimizer.step()
            optimizer.zero_grad()
