"""The training loop on a CUDA device: no waiting for the device, the CPU's numbers, resume."""

from pathlib import Path

import pytest
import torch

from saekit.autoencoders import Relu, SparseAutoencoder, SparseAutoencoderConfig, TopK, load_autoencoder
from saekit.autoencoders.base import LossTerms
from saekit.metrics import input_moments
from saekit.training import FitConfig, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

D_IN, BATCH, N_STEPS = 64, 256, 40


def batches() -> list[torch.Tensor]:
    x = torch.randn(BATCH * N_STEPS, D_IN, generator=torch.Generator().manual_seed(0))
    return list(x.split(BATCH))


def make_sae(sparsity: TopK | Relu, device: str) -> SparseAutoencoder:
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=D_IN, d_sae=512, sparsity=sparsity))
    mean, mean_squared_norm = input_moments(batches())
    sae.set_input_moments_(mean.float(), mean_squared_norm)
    return sae.to(device)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_gpu_comes_to_the_numbers_of_the_cpu(precision: str) -> None:
    finals = []
    for device in ("cpu", "cuda"):
        config = FitConfig(lr=1e-3, progress=False, precision=precision if device == "cuda" else "fp32")
        finals.append(fit([make_sae(TopK(k=8), device)], batches(), config).final[0])
    assert finals[1]["fvu"] == pytest.approx(finals[0]["fvu"], rel=1e-2 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize("sparsity", [TopK(k=8), Relu(l1=1.0)], ids=lambda spec: type(spec).__name__)
def test_a_step_never_waits_for_the_device(sparsity: TopK | Relu) -> None:
    sae = make_sae(sparsity, "cuda")
    on_device = [batch.cuda() for batch in batches()]
    first, rest = iter(on_device), on_device[1:]
    reached = False

    def stream() -> object:
        # The first step makes the optimizer's state; the last one is logged, which waits.
        nonlocal reached
        yield next(first)
        torch.cuda.set_sync_debug_mode("error")
        yield from rest[:-1]
        torch.cuda.set_sync_debug_mode("default")
        reached = True
        yield rest[-1]

    try:
        config = FitConfig(lr=1e-3, progress=False, log_every=10_000)
        fit([sae], stream(), config, n_tokens=BATCH * N_STEPS)  # type: ignore[arg-type]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reached


def test_resume_on_the_gpu_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    original = SparseAutoencoder.training_loss

    def stopping(self: SparseAutoencoder, x: torch.Tensor) -> LossTerms:
        if int(self.n_tokens_seen) == 25 * BATCH:
            raise Stop
        return original(self, x)

    config = FitConfig(lr=1e-3, progress=False, save_every=10)
    whole = make_sae(TopK(k=8), "cuda")
    fit([whole], batches(), config, out=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(SparseAutoencoder, "training_loss", stopping)
        fit([make_sae(TopK(k=8), "cuda")], batches(), config, out=tmp_path / "run")
    fit([make_sae(TopK(k=8), "cuda")], batches(), config, out=tmp_path / "run")
    resumed = load_autoencoder(tmp_path / "run/checkpoint").state_dict()
    assert all(torch.equal(value.cpu(), resumed[name]) for name, value in whole.state_dict().items())
