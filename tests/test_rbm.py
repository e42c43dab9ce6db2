"""Restricted Boltzmann machines against sums over all their states."""

import itertools

import pytest
import torch

import saekit as sk
from saekit.autoencoders.modules import seeded

KINDS = [("binary", "binary"), ("gaussian", "binary"), ("binary", "gaussian")]
every_kind = pytest.mark.parametrize(("visible", "hidden"), KINDS)


def machine(d_in: int = 5, d_latent: int = 4, scale: float = 0.6, **settings) -> sk.RBM:
    rbm = sk.RBM(sk.RBMConfig(d_in=d_in, d_latent=d_latent, weight_decay=0.0, **settings)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return rbm


def states(n: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def test_the_free_energy_is_the_sum_over_hidden_states():
    rbm = machine()
    v, h = states(5), states(4)
    energies = torch.stack([rbm.energy(v, each.expand(len(v), -1)) for each in h])
    torch.testing.assert_close(rbm.free_energy(v), -(-energies).logsumexp(0), rtol=1e-12, atol=1e-12)


def test_with_gaussian_hidden_units_it_is_the_integral():
    rbm = machine(3, 1, hidden="gaussian")
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    for v in states(3):
        energies = rbm.energy(v.expand(len(grid), -1), grid[:, None])
        integral = torch.trapezoid((-energies).exp(), grid).detach()
        assert rbm.free_energy(v[None]).item() == pytest.approx(-integral.log().item(), abs=1e-9)


def test_the_conditionals_are_those_of_the_joint_distribution():
    rbm = machine()
    h = states(4)
    for v in states(5)[::7]:
        p = (-rbm.energy(v.expand(16, -1), h)).softmax(0)
        torch.testing.assert_close(rbm.encode(v[None])[0], p @ h)
    v = states(5)
    for each in h[::5]:
        p = (-rbm.energy(v, each.expand(32, -1))).softmax(0)
        torch.testing.assert_close(rbm.decode(each[None])[0], p @ v)


def test_gaussian_units_have_their_input_as_mean():
    rbm = machine(hidden="gaussian")
    v = states(5)[:3]
    torch.testing.assert_close(rbm.encode(v), v @ rbm.W + rbm.b_hidden)
    grid = torch.linspace(-15, 15, 2001, dtype=torch.float64)
    h = rbm.encode(v[:1]).detach().expand(len(grid), -1).clone()
    h[:, 0] = grid
    p = (-rbm.energy(v[:1].expand(len(grid), -1), h)).softmax(0)
    assert (p @ grid).item() == pytest.approx(rbm.encode(v[:1])[0, 0].item(), abs=1e-9)


def test_log_z_is_the_same_from_both_sides_and_by_brute_force():
    rbm = machine()
    v, h = states(5), states(4)
    energies = torch.stack([rbm.energy(v, each.expand(len(v), -1)) for each in h])
    found = [rbm.exact_log_partition(over=side).value for side in ("visible", "hidden", "smaller")]
    assert found == pytest.approx([(-energies).logsumexp((0, 1)).item()] * 3, abs=1e-12)
    assert rbm.log_partition().method == "exact"
    assert float(rbm.log_likelihood(v).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_a_gaussian_visible_machine_is_a_density():
    rbm = machine(1, 4, visible="gaussian")
    grid = torch.linspace(-15, 15, 4001, dtype=torch.float64)
    density = rbm.log_likelihood(grid[:, None]).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-9)


@every_kind
def test_annealing_finds_log_z(visible, hidden):
    rbm = machine(8, 7, visible=visible, hidden=hidden, scale=0.5)
    exact = rbm.exact_log_partition().value
    estimate = rbm.ais_log_partition(n_chains=200, n_temperatures=300)
    assert estimate.method == "ais"
    assert abs(estimate.value - exact) < 0.05
    assert abs(estimate.value - exact) < 5 * estimate.standard_error
    assert rbm.ais_log_partition(n_chains=200, n_temperatures=300) == estimate  # seeded


def test_large_machines_are_annealed_and_their_enumeration_refused():
    rbm = machine(30, 25, scale=0.05)
    assert rbm.log_partition(n_chains=50, n_temperatures=20).method == "ais"
    with pytest.raises(sk.ConfigError, match=r"hidden side has 25 units; 22 can be enumerated.*ais_log_partition"):
        rbm.exact_log_partition()
    with pytest.raises(sk.ConfigError, match="visible side is Gaussian"):
        machine(visible="gaussian").exact_log_partition(over="visible")


@every_kind
@pytest.mark.parametrize("chains", ["data", "persistent"])
def test_the_gradient_is_the_formula_of_contrastive_divergence(visible, hidden, chains):
    rbm = machine(visible=visible, hidden=hidden, chains=chains, n_gibbs=3, n_chains=20)
    data = states(5) + (0.3 if visible == "gaussian" else 0)
    start = rbm.particles.clone() if chains == "persistent" else data
    with seeded(5):
        rbm.training_loss(data).total.backward()
    with seeded(5):
        negative = rbm.gibbs(start, 3)
    if chains == "persistent":
        assert torch.equal(rbm.particles, negative)

    def moments(v):
        h = rbm.encode(v).detach()
        return v.T @ h / len(v), v.mean(0), h.mean(0)

    for parameter, a, b in zip((rbm.W, rbm.b_visible, rbm.b_hidden), moments(data), moments(negative), strict=True):
        torch.testing.assert_close(parameter.grad, b - a, rtol=1e-10, atol=1e-12)


def test_weight_decay_is_on_the_weights_alone():
    rbm = sk.RBM(sk.RBMConfig(d_in=5, d_latent=4, weight_decay=0.5))
    terms = rbm.training_loss(states(5).float()).terms
    torch.testing.assert_close(terms["weight_decay"], 0.25 * rbm.W.detach().square().sum())


def test_gibbs_sampling_reaches_the_distribution():
    rbm = machine(3, 3)
    v = states(3)
    p = rbm.log_likelihood(v).exp()
    with seeded(0):
        chains = rbm.gibbs(torch.zeros(20_000, 3, dtype=torch.float64), 30)
    index = (chains @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)).long()
    frequencies = index.bincount(minlength=8) / len(index)
    assert float((frequencies - p).abs().sum() / 2) < 0.03


def test_a_machine_is_recovered_from_its_draws():
    with seeded(3):
        teacher = machine(6, 3, scale=2.0).float()
        with torch.no_grad():
            teacher.b_visible.copy_(-teacher.W.sum(1) / 2)
            teacher.b_hidden.copy_(-teacher.W.sum(0) / 2)
        v = states(6).float()
        log_p = teacher.log_likelihood(v)
        data = v[torch.multinomial(log_p.exp(), 2000, replacement=True)]
    student = sk.RBM(sk.RBMConfig(d_in=6, d_latent=3, n_gibbs=2, weight_decay=0.0))
    config = sk.FitConfig(lr=0.05, lr_decay_fraction=0.8, clip_grad_norm=0.0, progress=False)
    with seeded(4):
        sk.fit([student], sk.ShuffledRows(data, 250, n_epochs=40), config)
    rates = data.mean(0)
    alone = (v * rates.log() + (1 - v) * (1 - rates).log()).sum(1)
    divergences = [float((log_p.exp() * (log_p - log_q)).sum()) for log_q in (student.log_likelihood(v), alone)]
    assert divergences[0] < 0.05
    assert divergences[0] < divergences[1] / 5


def test_it_starts_from_the_datas_mean():
    rbm = sk.RBM(sk.RBMConfig(d_in=5, d_latent=4))
    mean = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    rbm.set_data_mean_(mean)
    torch.testing.assert_close(rbm.b_visible.sigmoid(), mean)


def test_grey_data_is_taken_as_probabilities_and_larger_values_refused():
    rbm = sk.RBM(sk.RBMConfig(d_in=5, d_latent=4))
    assert rbm.training_loss(torch.full((3, 5), 0.5)).total.isfinite()
    with pytest.raises(sk.InputError, match=r"is 255; Bernoulli takes values in \[0, 1\].*x / 255"):
        rbm.training_loss(torch.full((3, 5), 255.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"visible": "gaussian", "hidden": "gaussian"}, "both 'gaussian'.*LinearAutoencoder"),
        ({"n_gibbs": 0, "n_chains": 0}, "n_gibbs=0, n_chains=0"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(sk.ConfigError, match=message):
        sk.RBMConfig(d_in=5, d_latent=4, **settings)
