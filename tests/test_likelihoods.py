"""Likelihoods: their constants, their ranges, their means, and what data out of range is told."""

import math

import pytest
import torch
from scipy import integrate
from torch import distributions as td

import saekit as sk
from saekit.autoencoders.likelihoods import Likelihood, LikelihoodModule
from saekit.files import from_tagged, to_tagged

SPECS: list[Likelihood] = [
    sk.SquaredError(link="tanh"),
    sk.Gaussian(sigma=0.3, link="sigmoid"),
    sk.Gaussian(sigma="learned"),
    sk.Gaussian(sigma="optimal"),
    sk.Laplace(scale=0.7),
    sk.Bernoulli(),
    sk.ContinuousBernoulli(),
    sk.Multinomial(per_word=False),
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def pair(seed: int = 0, low: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return output, low + (1 - low) * torch.rand(5, 4, generator=generator, dtype=torch.float64)


def nll(spec: Likelihood, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return spec.build(x.shape[1]).double().nll(output, x)


def test_the_constants_are_those_of_the_distributions():
    output, x = pair()
    sums = {
        sk.Gaussian(sigma=0.3): td.Normal(output, 0.3).log_prob(x),
        sk.Gaussian(sigma=0.3, link="sigmoid"): td.Normal(output.sigmoid(), 0.3).log_prob(x),
        sk.Laplace(scale=0.7): td.Laplace(output, 0.7).log_prob(x),
        sk.Bernoulli(): td.Bernoulli(logits=output).log_prob(x.round()),
        sk.ContinuousBernoulli(): td.ContinuousBernoulli(logits=output).log_prob(x),
    }
    for spec, expected in sums.items():
        found = nll(spec, output, x.round() if spec == sk.Bernoulli() else x)
        torch.testing.assert_close(found, -expected.sum(1), rtol=1e-12, atol=1e-12)


def test_squared_error_is_a_gaussian_of_variance_one_half_without_its_constant():
    output, x = pair()
    constant = 0.5 * 4 * math.log(math.pi)
    gaussian = nll(sk.Gaussian(sigma=0.5**0.5), output, x)
    torch.testing.assert_close(nll(sk.SquaredError(), output, x) + constant, gaussian)


def test_a_multinomial_is_the_cross_entropy_of_words():
    output, x = pair()
    counts = (9 * x).round()
    expected = -(counts * output.log_softmax(1)).sum(1)
    torch.testing.assert_close(nll(sk.Multinomial(per_word=False), output, counts), expected)
    torch.testing.assert_close(nll(sk.Multinomial(), output, counts), expected / counts.sum(1))
    frequencies = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(nll(sk.Multinomial(), output, frequencies), expected / counts.sum(1))
    distribution = td.Multinomial(int(counts[0].sum()), logits=output[0], validate_args=False)
    coefficient = torch.lgamma(counts[0].sum() + 1) - torch.lgamma(counts[0] + 1).sum()
    torch.testing.assert_close(expected[0], coefficient - distribution.log_prob(counts[0]))


def test_grey_values_integrate_to_one_under_the_continuous_bernoulli_alone():
    output = torch.tensor([[0.8]], dtype=torch.float64)

    def density(spec: Likelihood) -> float:
        module = spec.build(1)
        return integrate.quad(lambda x: float((-module.nll(output, torch.tensor([[x]]).double())).exp()), 0, 1)[0]

    assert density(sk.ContinuousBernoulli()) == pytest.approx(1, abs=1e-6)
    assert density(sk.Bernoulli()) < 0.6


def test_the_least_cross_entropy_of_grey_data_is_its_entropy():
    x = torch.tensor([[0.3, 0.9]], dtype=torch.float64)
    best = nll(sk.Bernoulli(), x.logit(), x)
    assert float(best) == pytest.approx(float(td.Bernoulli(x).entropy().sum()))
    assert float(best) > 0.9


@every_spec
def test_losses_are_summed_over_features(spec):
    if isinstance(spec, sk.Multinomial):
        return
    output, x = pair(low=-0.0)
    module = spec.build(4).double()
    single = torch.stack([module.nll(output[:, i : i + 1], x[:, i : i + 1]) for i in range(4)]).sum(0)
    torch.testing.assert_close(module.nll(output, x), single)


@every_spec
def test_the_output_for_a_mean_gives_that_mean(spec):
    mean = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    module = spec.build(4)
    torch.testing.assert_close(module.mean(module.output_for_mean(mean)), mean, rtol=1e-6, atol=1e-6)


@every_spec
def test_draws_have_the_mean(spec):
    torch.manual_seed(0)
    module = spec.build(4).double()
    output = torch.randn(1, 4, dtype=torch.float64).expand(40_000, -1)
    with torch.no_grad():
        drawn = module.sample(output).mean(0)
    torch.testing.assert_close(drawn, module.mean(output[0]), rtol=0, atol=0.03)


@every_spec
def test_specs_survive_json(spec):
    assert from_tagged(to_tagged(spec), Likelihood) == spec


def test_the_optimal_sigma_is_the_batchs_in_training_and_the_running_one_in_nll():
    module = sk.Gaussian(sigma="optimal").build(4)
    output, x = (each.float() for each in pair())
    variance = (x - output).square().mean()
    expected = 4 * (0.5 * torch.log(2 * math.pi * variance) + 0.5) * torch.ones(())
    torch.testing.assert_close(module.training_nll(output, x).mean(), expected)
    torch.testing.assert_close(module.sigma, variance.sqrt())
    module.training_nll(output, x + 1)
    later = (x + 1 - output).square().mean()
    torch.testing.assert_close(module.sigma.square(), 0.9 * variance + 0.1 * later)
    before = module.sigma.clone()
    module.nll(output, x)
    assert torch.equal(module.sigma, before)


def test_no_sigma_is_better_for_a_batch_than_the_optimal_one():
    output, x = pair()
    module = sk.Gaussian(sigma="optimal").build(4).double()
    best = module.training_nll(output, x).sum()
    others = [nll(sk.Gaussian(sigma=float(module.sigma) * factor), output, x).sum() for factor in (0.9, 1.1)]
    assert all(best < other for other in others)


def test_a_perfect_reconstruction_has_a_finite_density():
    x = torch.rand(3, 4)
    assert sk.Gaussian(sigma="optimal").build(4).training_nll(x, x).isfinite().all()


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (sk.Bernoulli(), 200.0, r"x\[1, 2\] is 200; Bernoulli takes values in \[0, 1\].*x = x / 255"),
        (sk.Bernoulli(), -0.5, r"x\[1, 2\] is -0.5; .*Rescale it.*Gaussian\(\)"),
        (sk.ContinuousBernoulli(), 1.5, r"is 1.5; ContinuousBernoulli takes values in \[0, 1\]"),
        (sk.SquaredError(link="sigmoid"), 2.0, r"is 2; SquaredError\(link='sigmoid'\) takes values in \[0, 1\]"),
        (sk.Gaussian(link="tanh"), -3.0, r"is -3; Gaussian\(link='tanh'\) takes values in \[-1, 1\]"),
        (sk.Multinomial(), -1.0, r"is -1; Multinomial takes values of 0 or more.*counts"),
        (sk.Gaussian(), float("nan"), r"x\[1, 2\] is nan. Drop such rows"),
        (sk.SquaredError(), float("inf"), r"x\[1, 2\] is inf"),
    ],
    ids=str,
)
def test_data_out_of_range_is_named_with_the_fix(spec, value, message):
    x = torch.full((3, 4), 0.25)
    x[1, 2] = value
    with pytest.raises(sk.InputError, match=message):
        spec.build(4).check(x)


def test_a_document_without_words_is_named():
    x = torch.ones(3, 4)
    x[2] = 0
    with pytest.raises(sk.InputError, match=r"Row 2 of x has no words"):
        sk.Multinomial().build(4).check(x)


@every_spec
def test_data_in_range_passes(spec):
    assert spec.build(4).check(torch.full((3, 4), 0.25)) is None
    assert isinstance(spec.build(4), LikelihoodModule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sk.Gaussian(sigma=0.0), "Gaussian.sigma=0.0; .*'learned'"),
        (lambda: sk.Gaussian(sigma=float("inf")), "Gaussian.sigma=inf"),
        (lambda: sk.Laplace(scale=-1.0), "Laplace.scale=-1"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(sk.ConfigError, match=message):
        make()
