"""The contractive autoencoder: three ways to one penalty, and a decoder that cannot undo it."""

import pytest
import torch

import saekit as sk
from saekit.autoencoders import ContractiveAutoencoder, ContractiveAutoencoderConfig
from saekit.errors import ConfigError

ONE_LAYER = sk.Mlp(hidden=())
DEEP = sk.Mlp(hidden=(9,))


def small(**changes: object) -> ContractiveAutoencoder:
    model = ContractiveAutoencoder(ContractiveAutoencoderConfig(**{"d_in": 6, "d_latent": 5, **changes}))  # type: ignore[arg-type]
    return model.double()


def rows(n: int = 7) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(model: ContractiveAutoencoder, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.autograd.functional.jacobian(lambda row: model.encode(row[None])[0], row) for row in x])


@pytest.mark.parametrize("code", ["sigmoid", "tanh", "relu", "identity", "silu"])
def test_the_closed_form_is_the_jacobians_norm_for_one_layer(code):
    model, x = small(code=code), rows()
    assert model.how == "closed"
    expected = by_hand(model, x).square().sum((1, 2))
    torch.testing.assert_close(model.contraction(x), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(model.jacobian(x), by_hand(model, x), rtol=0, atol=1e-14)


def test_of_a_sigmoid_it_is_the_published_formula():
    model, x = small(), rows()
    h, W = model.encode(x), model.encoder[0].weight
    torch.testing.assert_close(model.contraction(x), ((h * (1 - h)) ** 2) @ W.square().sum(1), rtol=0, atol=1e-14)


def test_the_exact_form_is_the_jacobians_norm_for_a_deep_encoder():
    model, x = small(network=DEEP), rows()
    assert model.how == "exact"
    torch.testing.assert_close(model.contraction(x), by_hand(model, x).square().sum((1, 2)), rtol=0, atol=1e-13)


def test_the_probes_are_right_on_average_and_a_probe_of_ones_is_not():
    x = rows(2)
    exact = small(network=DEEP, jacobian="exact").contraction(x)
    torch.manual_seed(0)
    many = small(network=DEEP, jacobian="hutchinson", n_probes=3000).contraction(x)
    torch.testing.assert_close(many, exact, rtol=0.05, atol=0)
    ones = small(network=DEEP).jacobian(x).sum(1).square().sum(1)
    assert ((ones - exact).abs() / exact).max() > 0.1


@pytest.mark.parametrize("how", ["closed", "exact", "hutchinson"])
def test_the_three_ways_have_the_gradient_of_the_penalty(how):
    model, x = small(jacobian=how, n_probes=2000 if how == "hutchinson" else 1), rows(3)
    found = torch.autograd.grad(model.contraction(x).mean(), list(model.encoder.parameters()))
    h, W = model.encode(x), model.encoder[0].weight
    exact = (((h * (1 - h)) ** 2) @ W.square().sum(1)).mean()
    for a, b in zip(found, torch.autograd.grad(exact, list(model.encoder.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=(0.1 if how == "hutchinson" else 1e-12) * b.abs().max().item())


def test_wide_deep_codes_are_probed():
    assert small(network=DEEP, d_latent=40).how == "hutchinson"


def test_the_loss_is_reconstruction_and_weighted_penalty():
    model, x = small(weight=0.7), rows()
    loss = model.training_loss(x)
    reconstruction = (model(x) - x).square().sum(1).mean()
    torch.testing.assert_close(loss.total, reconstruction + 0.7 * model.contraction(x).mean())
    torch.testing.assert_close(sum(loss.terms.values()), loss.total.detach())


@pytest.mark.parametrize("network", [ONE_LAYER, DEEP, sk.Convolutional(image=(1, 2, 3), channels=(4,), hidden=())])
def test_a_larger_decoder_does_not_undo_the_penalty(network):
    model = small(network=network)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(100)
    model.project_()
    for layer in model.decoder.modules():
        weight = getattr(layer, "weight", None)
        if weight is not None:
            over = (0,) if weight.ndim == 2 else (1, 2, 3)
            norms = torch.linalg.vector_norm(weight, dim=over)
            torch.testing.assert_close(norms, torch.ones_like(norms))


def test_norms_below_one_and_tied_decoders_are_left_alone():
    model = small()
    with torch.no_grad():
        model.decoder[0].weight.mul_(0.01)
    before = model.decoder[0].weight.clone()
    model.project_()
    assert torch.equal(before, model.decoder[0].weight)
    tied = small(network=sk.Mlp(hidden=(), tied=True))
    with torch.no_grad():
        tied.encoder[0].weight.mul_(100)
    before = tied.encoder[0].weight.clone()
    tied.project_()
    assert torch.equal(before, tied.encoder[0].weight)


def test_a_free_decoder_would_undo_it():
    """Why there is a limit: f / c and c g reconstruct as f and g do, at a penalty smaller by c^2."""
    model, x = small(code="identity"), rows()
    reconstruction, penalty = model(x), model.contraction(x)
    with torch.no_grad():
        model.encoder[0].weight.div_(10)
        model.encoder[0].bias.div_(10)
        model.decoder[0].weight.mul_(10)
    torch.testing.assert_close(model(x), reconstruction)
    torch.testing.assert_close(model.contraction(x), penalty / 100)


def test_the_tangents_of_a_line_are_its_direction():
    direction = torch.nn.functional.normalize(torch.arange(1.0, 7).double(), dim=0)
    model = small(code="identity")
    with torch.no_grad():
        model.encoder[0].weight.copy_(torch.arange(1.0, 6)[:, None] * direction)
    cosines = (model.tangents(rows(), 1)[:, 0] @ direction).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_blurring_costs_the_jacobian_and_the_laplacian_term():
    """E||r(x + e) - x||^2 = ||r(x) - x||^2 + s^2 (||J_r||^2 + (r(x) - x) . Lap r(x)): the Jacobian alone is not it.

    The textbook's link of denoising to contraction leaves the last term out, which is right where r(x) = x.
    """
    model, x, s = small(network=DEEP), 0.5 * rows(1), 0.05
    r = lambda row: model(row[None])[0]  # noqa: E731
    J = torch.autograd.functional.jacobian(r, x[0])
    laplacian = torch.stack(
        [torch.autograd.functional.hessian(lambda row, i=i: r(row)[i], x[0]).trace() for i in range(6)]
    )
    e = s * torch.randn(200_000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        # Opposite noise cancels what is odd in it.
        cost = 0.5 * sum((model(x + sign * e) - x).square().sum(1) for sign in (1, -1)).mean()
        rise = (cost - (model(x) - x).square().sum()) / s**2
        jacobian, both = J.square().sum(), J.square().sum() + ((model(x) - x)[0] * laplacian).sum()
    assert abs(rise - both) / both < 0.02
    assert abs(rise - jacobian) > 3 * abs(rise - both)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jacobian": "closed", "network": DEEP}, "jacobian='closed' needs an encoder of one"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"d_latent": 0, "n_probes": 0}, "d_latent=0, n_probes=0"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_a_decoder_that_cannot_be_limited_and_too_many_tangents_are_named():
    with pytest.raises(ConfigError, match="no Linear.*undoes the penalty"):
        ContractiveAutoencoder(
            ContractiveAutoencoderConfig(d_in=6, d_latent=6, network=sk.Custom()),
            encoder=torch.nn.Linear(6, 6),
            decoder=torch.nn.Bilinear(6, 6, 6),
        )
    with pytest.raises(ConfigError, match="k=6; the Jacobian has 5 directions"):
        small().tangents(rows(), 6)
