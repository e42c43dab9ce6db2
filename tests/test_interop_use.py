"""A foreign autoencoder does what ours do: it is measured on a store, indexed, and trained on."""

import numpy as np
import pytest
import torch
from foreign import LAYOUTS, D
from stores import make_tiny_store

import saekit as sk
from saekit.interop import load_sae


@pytest.mark.parametrize("layout", ["openai, topk", "gemma scope 1, w_enc", "prisma, gated"])
def test_it_is_measured_and_indexed(layout, tmp_path):
    foreign = LAYOUTS[layout](tmp_path)
    sae = load_sae(foreign.path)
    point = sae.provenance["hook_point"]
    store = make_tiny_store(tmp_path / "store", d=D, hook_points=(point,))
    x = store.rows(0, store.n_rows).double().numpy()
    latents, x_hat = foreign.define(x)

    found = sk.evaluate(sae, store, n_bootstrap=5)
    fvu = np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum()
    assert found.headline()["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert found.headline()["l0"] == pytest.approx(np.count_nonzero(latents, axis=1).mean(), rel=1e-3)

    index = sk.build_index(sae, store, tmp_path / "index")
    feature = int(np.argmax((latents > 0).sum(0)))
    fired = index.activations(feature)
    assert fired.rows.tolist() == np.flatnonzero(latents[:, feature] > 0).tolist()
    np.testing.assert_allclose(fired.values, latents[fired.rows, feature], rtol=5e-3, atol=1e-3)


def test_it_trains_on(tmp_path):
    foreign = LAYOUTS["saelens legacy, topk"](tmp_path)
    sae, x = load_sae(foreign.path), torch.randn(64, D, generator=torch.Generator().manual_seed(1))
    before = sae.training_loss(x).total.item()
    sk.fit([sae], [x] * 30, sk.FitConfig(lr=1e-3))
    assert sae.training_loss(x).total.item() < before
