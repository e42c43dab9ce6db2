"""Autoencoders that normalise each token by itself, and transcoders: what depends on the token besides its latents."""

import math

import numpy as np
import pytest
import torch

import saekit as sk
from saekit.autoencoders import Transcoder, TranscoderConfig
from saekit.errors import ConfigError, InputError
from tests import tiny

D, F = 8, 24
NORMS = ("layer_norm", "rms")


def autoencoder(norm: str) -> sk.SparseAutoencoder:
    config = sk.SparseAutoencoderConfig(d_in=D, d_sae=F, sparsity=sk.Relu(l1=0.1), token_norm=norm)
    return sk.SparseAutoencoder(config)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(30, D, generator=torch.Generator().manual_seed(0)) * 5 + 1


@pytest.mark.parametrize("norm", NORMS)
def test_latents_do_not_see_a_tokens_size(norm, x):
    sae = autoencoder(norm)
    factors = torch.linspace(1, 100, len(x))[:, None]
    assert torch.allclose(sae.encode(x), sae.encode(x * factors), atol=1e-4)
    assert torch.allclose(sae(x) * factors, sae(x * factors), rtol=1e-3, atol=1e-3)


def test_what_each_norm_takes_away(x):
    normal = autoencoder("layer_norm").normalize(x)
    assert torch.allclose(normal.mean(1), torch.zeros(len(x)), atol=1e-5)
    assert torch.allclose(normal.std(1), torch.ones(len(x)), atol=1e-4)
    assert torch.allclose(autoencoder("rms").normalize(x).norm(dim=1), torch.full((len(x),), math.sqrt(D)))


@pytest.mark.parametrize("norm", NORMS)
def test_a_reconstruction_needs_its_token(norm, x):
    sae = autoencoder(norm)
    latents = sae.encode(x)
    with pytest.raises(InputError, match=r"decode_for\(x, latents\)"):
        sae.decode(latents)
    with pytest.raises(InputError, match="how large their token was"):
        sae.decode_sparse(sae.encode_sparse(x))
    assert torch.equal(sae.decode_for(x, latents), sae(x))
    assert torch.allclose(sae.decode_sparse(sae.encode_sparse(x), x), sae(x), atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_it_trains_in_the_units_of_normalised_tokens(norm, x):
    sae = autoencoder(norm)
    big = sk.fit([sae], [1000 * x] * 100, sk.FitConfig(lr=2e-2)).final[0]["fvu"]
    assert big < 0.05
    with torch.no_grad():
        assert float((sae(x) - x).square().sum() / x.square().sum()) < 0.05
    with pytest.raises(InputError, match="moments of raw ones do not fit"):
        sae.set_input_moments_(torch.zeros(D), 1.0)


@pytest.mark.parametrize("norm", ["none", *NORMS])
def test_gradients_are_exact(norm):
    sae, x = autoencoder(norm).double(), torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: sae(rows), (x,))


def test_a_token_of_zeros_stays_finite():
    zeros = torch.zeros(2, D)
    for norm in NORMS:
        assert bool(autoencoder(norm)(zeros).isfinite().all())


def test_one_feature_has_no_deviation():
    with pytest.raises(ConfigError, match="needs a d_in of 2 or more"):
        sk.SparseAutoencoderConfig(d_in=1, d_sae=2, sparsity=sk.Relu(), token_norm="layer_norm")


def transcoder(has_skip: bool) -> Transcoder:
    model = Transcoder(TranscoderConfig(d_in=D, d_out=5, d_sae=F, sparsity=sk.TopK(k=3), has_skip=has_skip))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model


@pytest.mark.parametrize("has_skip", [False, True])
def test_a_transcoder_writes_to_another_width(has_skip, x, tmp_path):
    model = transcoder(has_skip)
    latents = model.encode(x)
    assert (latents > 0).sum(1).max() == 3
    expected = latents @ model.W_dec + model.b_dec + (x @ model.W_skip if has_skip else 0)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert torch.allclose(model.decode_for(x, 0 * latents), expected - latents @ model.W_dec, atol=1e-4)
    active = model.encode_sparse(x)
    assert torch.equal(active.row_offsets.diff(), (latents > 0).sum(1))
    again = sk.load_autoencoder(model.save(tmp_path / "transcoder"))
    assert isinstance(again, Transcoder)
    assert torch.equal(again(x), model(x))


def test_a_transcoder_says_that_it_is_not_trained(x):
    with pytest.raises(ConfigError, match="is read, not trained"):
        transcoder(False).training_loss(x)
    with pytest.raises(ConfigError, match="d_out=0 is not 1 or larger"):
        TranscoderConfig(d_in=1, d_out=0, d_sae=4)


@pytest.mark.parametrize("norm", ["none", *NORMS])
@pytest.mark.parametrize("keep_error", [True, False])
def test_steering_moves_each_token_by_its_own_size(norm, keep_error, tmp_path):
    lm = sk.load_backbone(tiny.make("llama", tmp_path / "lm"))
    config = sk.SparseAutoencoderConfig(d_in=lm.d_model, d_sae=40, sparsity=sk.Relu(), token_norm=norm)
    sae = sk.SparseAutoencoder(config).requires_grad_(False)
    sae.input_scale.fill_(0.7)
    path, ids = lm.resolve("layers.1:input"), torch.tensor([[0, 5, 9, 4, 7]])

    def stream() -> torch.Tensor:
        with torch.no_grad(), sk.capture(lm.model, [path]) as found:
            lm.model(input_ids=ids, use_cache=False)
        return found[path][0].float()

    rows = stream()
    edited = sae.encode(rows)
    edited[:, 3] += 2
    error = rows - sae(rows) if keep_error else 0
    with sk.steer(lm, "layers.0", sae, {3: sk.Add(2.0)}, positions=[np.arange(5)], keep_error=keep_error):
        steered = stream()
    assert torch.allclose(steered, sae.decode_for(rows, edited) + error, atol=1e-4)
    assert not torch.allclose(steered, rows, atol=1e-2)
