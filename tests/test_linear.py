"""The linear autoencoder and its theory: PCA's span, the eigenvalue tail, saddles, Oja's rule."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import saekit as sk
from saekit.autoencoders import (
    covariance_loss,
    covariance_spectrum,
    eigenvalue_tail,
    oja_step_,
    principal_angles,
)

K = 4


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """Full-rank rows with a known, well separated spectrum and a mean that is not 0."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    scales = torch.tensor([4, 3.2, 2.5, 1.9, 0.6, 0.5, 0.4, 0.2], dtype=torch.float64)
    return torch.randn(120, 8, generator=generator, dtype=torch.float64) * scales @ basis + 3


def make(**settings) -> sk.LinearAutoencoder:
    return sk.LinearAutoencoder(sk.LinearAutoencoderConfig(**{"d_in": 8, "d_latent": K} | settings)).double()


def train(model, x, n_steps=400):
    """Full batches of Adam, falling to a learning rate of 0."""
    model.set_data_mean_(x.mean(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = 0.05 * min(1, 2 * (1 - step / n_steps))
        optimizer.zero_grad()
        model.training_loss(x).total.backward()
        optimizer.step()
    return model


def loss(model, x) -> float:
    return float(model.nll(x).mean().detach())


@pytest.mark.parametrize("tied", [False, True])
def test_training_ends_on_the_span_and_the_error_of_pca(x, tied):
    model = train(make(tied=tied), x, n_steps=1000)
    tail = float(eigenvalue_tail(x, K))
    axes = covariance_spectrum(x)[1][:K]
    assert float(principal_angles(model.W_dec.detach(), axes).max()) < 1e-3
    assert loss(model, x) == pytest.approx(tail, rel=1e-4)
    product = (model.W_dec @ model.W_enc).detach()
    torch.testing.assert_close(product, torch.eye(K, dtype=torch.float64), rtol=0, atol=2e-3)
    mapped = (model.W_enc @ model.W_dec).detach()
    torch.testing.assert_close(mapped, axes.T @ axes, rtol=0, atol=2e-3)


def test_twenty_random_starts_have_no_other_minimum(x):
    values, vectors = covariance_spectrum(x)
    covariance = vectors.T @ values.diag() @ vectors
    generator = torch.Generator().manual_seed(1)
    W_enc, W_dec = (
        0.3 * torch.randn(20, *shape, generator=generator, dtype=torch.float64) for shape in ((8, K), (K, 8))
    )
    parameters = [W_enc.requires_grad_(), W_dec.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=150, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        rest = torch.eye(8, dtype=torch.float64) - W_enc @ W_dec
        total = torch.einsum("nij,ik,nkj->", rest, covariance, rest)
        total.backward()
        return total

    optimizer.step(closure)
    for encoder, decoder in zip(*parameters, strict=True):
        assert covariance_loss(covariance, encoder, decoder).item() == pytest.approx(values[K:].sum().item(), rel=1e-4)


def test_the_closed_form_is_sklearns_pca_up_to_signs(x):
    model = make()
    model.fit_closed_form_(x)
    pca = PCA(K).fit(x.numpy())
    cosines = (model.W_dec.detach() * torch.from_numpy(pca.components_)).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(K, dtype=torch.float64))
    np.testing.assert_allclose(model(x).detach().numpy(), pca.inverse_transform(pca.transform(x.numpy())), atol=1e-10)
    assert loss(model, x) == pytest.approx(float(eigenvalue_tail(x, K)), rel=1e-12)


def test_principal_axes_undo_any_mixing_of_the_latents(x):
    model = make()
    model.fit_closed_form_(x)
    values, vectors = covariance_spectrum(x)
    mix = torch.randn(K, K, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        model.W_enc.copy_(model.W_enc @ mix)
        model.W_dec_free.copy_(torch.linalg.inv(mix) @ model.W_dec)
    assert loss(model, x) == pytest.approx(float(eigenvalue_tail(x, K)), rel=1e-9)
    codes = model.encode(x).detach()
    assert float((torch.corrcoef(codes.T) - torch.eye(K)).abs().max()) > 0.2  # an optimum need not be decorrelated
    axes, variances = model.principal_axes(x)
    torch.testing.assert_close(variances, values[:K])
    torch.testing.assert_close((axes * vectors[:K]).sum(1).abs(), torch.ones(K, dtype=torch.float64))


def test_the_encoder_is_arbitrary_where_data_does_not_vary():
    digits = torch.tensor(load_digits().data / 16)
    model = sk.LinearAutoencoder(sk.LinearAutoencoderConfig(d_in=64, d_latent=10)).double()
    model.fit_closed_form_(digits)
    before = loss(model, digits)
    constant = (digits.var(0) == 0).nonzero().flatten()
    assert len(constant) == 3
    with torch.no_grad():
        model.W_enc[constant] += 5
    span = principal_angles(model.W_dec.detach(), covariance_spectrum(digits)[1][:10]).max()
    assert loss(model, digits) == pytest.approx(before, rel=1e-12)
    assert float(span) < 1e-6
    assert float(eigenvalue_tail(digits, 10)) == pytest.approx(1.2285741, rel=1e-6)


def test_other_eigenvectors_are_stationary_with_a_way_down(x):
    _, vectors = covariance_spectrum(x)
    model = make()
    model.set_axes_(vectors[[0, 1, 2, 4]], x.mean(0))
    model.training_loss(x).total.backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-10
    at_saddle = loss(model, x)
    with torch.no_grad():
        direction = 0.1 * vectors[3]
        model.W_enc[:, 3] += direction
        model.W_dec_free[3] += direction
    assert loss(model, x) < at_saddle


def test_without_centring_the_span_is_that_of_the_second_moments(x):
    model = make(centred=False, d_latent=1)
    model.fit_closed_form_(x)
    moments = covariance_spectrum(x, centred=False)[1][:1]
    assert float(principal_angles(model.W_dec.detach(), moments).max()) < 1e-6
    assert float(principal_angles(model.W_dec.detach(), covariance_spectrum(x)[1][:1]).max()) > 0.05
    assert loss(model, x) == pytest.approx(float(eigenvalue_tail(x, 1, centred=False)))


@pytest.mark.parametrize("d_latent", [8, 11])
def test_a_code_as_wide_as_the_data_copies_it(x, d_latent):
    model = make(d_latent=d_latent)
    model.fit_closed_form_(x)
    assert loss(model, x) < 1e-8


def test_no_encoder_beats_the_tail_with_a_linear_decoder(x):
    encoder = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, K)).double()
    decoder = torch.nn.Linear(K, 8).double()
    config = sk.DeepAutoencoderConfig(d_in=8, d_latent=K, network=sk.Custom())
    model = sk.DeepAutoencoder(config, encoder=encoder, decoder=decoder).double()
    train(model, x)
    tail = float(eigenvalue_tail(x, K))
    assert tail - 1e-6 <= loss(model, x) < 0.2 * float(covariance_spectrum(x)[0].sum())


def test_the_loss_by_covariance_is_that_by_rows(x):
    model = make()
    with torch.no_grad():
        model.b_dec.copy_(x.mean(0))
    deviations = x - x.mean(0)
    by_covariance = covariance_loss(deviations.T @ deviations / len(x), model.W_enc, model.W_dec)
    assert float(by_covariance.detach()) == pytest.approx(loss(model, x), rel=1e-12)


def test_ojas_neuron_turns_to_the_first_eigenvector_and_its_subspace_to_the_first_ones(x):
    centred = x - x.mean(0)
    vectors = covariance_spectrum(x)[1]
    generator = torch.Generator().manual_seed(0)
    neuron = 0.1 * torch.randn(1, 8, generator=generator, dtype=torch.float64)
    subspace = 0.1 * torch.randn(K, 8, generator=generator, dtype=torch.float64)
    for _ in range(400):
        oja_step_(neuron, centred, lr=0.02)
        oja_step_(subspace, centred, lr=0.02)
    assert float((neuron @ vectors[0]).abs()) > 0.999
    assert float(neuron.norm()) == pytest.approx(1, abs=1e-3)
    assert float(principal_angles(subspace, vectors[:K]).max()) < 1e-2


def test_principal_angles_resolve_small_ones():
    a = torch.eye(3, dtype=torch.float64)[:1]
    b = torch.tensor([[1, 1e-9, 0]], dtype=torch.float64)
    assert float(principal_angles(a, b)) == pytest.approx(1e-9, rel=1e-6)
    assert float(principal_angles(a, torch.eye(3, dtype=torch.float64)[1:2])) == pytest.approx(np.pi / 2)
