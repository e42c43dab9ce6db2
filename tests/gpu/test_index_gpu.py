"""An index built on a GPU beside the same one built on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from indexes import dense
from stores import make_tiny_store

from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.jobs.index import build_index

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_an_index_built_on_a_gpu_holds_the_same_codes(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "acts", d=64, n_examples=200)
    sae = SparseAutoencoder(SparseAutoencoderConfig(d_in=64, d_sae=512, sparsity=TopK(k=8)))
    on_cpu = dense(build_index(sae, store, tmp_path / "cpu", progress=False))
    on_gpu = dense(build_index(sae.cuda(), store, tmp_path / "gpu", batch_size=100, progress=False))
    # The order of sums differs: a latent at the edge of the k largest may swap.
    assert ((on_cpu > 0) != (on_gpu > 0)).mean() < 1e-4
    both = (on_cpu > 0) & (on_gpu > 0)
    assert np.abs(on_gpu[both] / on_cpu[both] - 1).max() < 1e-2
