"""A foreign autoencoder does what ours do: it is measured on a store, indexed, and trained on."""

import numpy as np
import pytest
import torch
from foreign import LAYOUTS, D
from stores import make_tiny_store

import saekit as sk
from saekit.errors import CheckpointError, ConfigError
from saekit.interop import load_sae
from tests import tiny


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


def test_a_transcoder_is_not_taken_for_an_autoencoder(tmp_path):
    transcoder = load_sae(LAYOUTS["gemma scope 2, transcoder"](tmp_path).path)
    store = make_tiny_store(tmp_path / "store", d=D)
    for use in (lambda: sk.evaluate(transcoder, store), lambda: sk.build_index(transcoder, store, tmp_path / "index")):
        with pytest.raises((CheckpointError, ConfigError), match="transcoder|Transcoder"):
            use()
    lm = sk.load_backbone(tiny.make("llama", tmp_path / "lm"))
    with pytest.raises(ConfigError, match="write to another hook point"), sk.ablate(lm, "layers.0", transcoder, [1]):
        pass
    assert not (tmp_path / "index").exists()
