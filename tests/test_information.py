"""Entropy, cross-entropy and divergence: the identities of a lecture's annex."""

import pytest
import torch

from saekit.autoencoders import cross_entropy, entropy, kl_divergence
from saekit.errors import InputError


def distributions(seed: int) -> torch.Tensor:
    return torch.rand(50, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def test_the_divergence_is_cross_entropy_less_entropy_and_torchs():
    p, q = distributions(0), distributions(1)
    by_sum = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(cross_entropy(p, q) - entropy(p), by_sum, rtol=0, atol=1e-12)
    torch.testing.assert_close(kl_divergence(p, q), by_sum, rtol=0, atol=1e-12)
    as_torch = torch.distributions.kl_divergence(torch.distributions.Categorical(p), torch.distributions.Categorical(q))
    torch.testing.assert_close(kl_divergence(p, q), as_torch, rtol=0, atol=1e-12)


def test_it_is_never_negative_and_zero_for_the_same_distribution():
    p, q = distributions(0), distributions(1)
    assert (kl_divergence(p, q) > 0).all()
    assert torch.equal(kl_divergence(p, p), torch.zeros(50).double())


def test_it_is_not_symmetric():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    assert kl_divergence(p, q).item() == pytest.approx(0.5108, abs=1e-4)
    assert kl_divergence(q, p).item() == pytest.approx(0.3681, abs=1e-4)


def test_zero_log_zero_is_zero_and_the_impossible_that_happens_costs_infinitely():
    certain, fair = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert entropy(certain) == 0
    assert kl_divergence(certain, fair).item() == pytest.approx(0.6931, abs=1e-4)
    assert kl_divergence(fair, certain) == float("inf")
    assert kl_divergence(certain, certain) == 0


def test_the_entropy_is_largest_for_equal_shares():
    uniform = torch.full((8,), 1 / 8).double()
    assert entropy(uniform).item() == pytest.approx(torch.tensor(8.0).log().item())
    assert (entropy(distributions(0)) < entropy(uniform)).all()


@pytest.mark.parametrize("p", [torch.tensor([0.5, 0.6]), torch.tensor([1.5, -0.5]), torch.tensor([float("nan"), 1])])
def test_what_is_no_distribution_is_named(p):
    with pytest.raises(InputError, match="p is no distribution: its smallest entry"):
        entropy(p)
