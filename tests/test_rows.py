"""Shuffled and weighted batches of a tensor in memory."""

import itertools

import pytest
import torch

from saekit.autoencoders import LinearAutoencoder, LinearAutoencoderConfig
from saekit.errors import ConfigError
from saekit.training import ShuffledRows

X = torch.arange(12.0)[:, None].repeat(1, 3)


def drawn(rows: ShuffledRows, n_batches: int) -> torch.Tensor:
    return torch.cat(list(itertools.islice(rows, n_batches)))


def test_an_epoch_is_every_row_once_in_another_order_each_time() -> None:
    rows = ShuffledRows(X, batch_size=5, n_epochs=2)
    first, second = drawn(rows, 3), drawn(rows, 3)
    assert sorted(first[:, 0].tolist()) == sorted(second[:, 0].tolist()) == X[:, 0].tolist()
    assert first.tolist() != second.tolist()


def test_weighted_draws_follow_the_weights_and_leave_out_what_has_none() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0, *[0.0] * 8])
    taken = drawn(ShuffledRows(X, batch_size=12, n_epochs=1000, weights=weights), 1000)[:, 0].long()
    shares = torch.bincount(taken, minlength=12) / len(taken)
    assert torch.allclose(shares, weights / weights.sum(), atol=0.02)
    assert not shares[weights == 0].any()


def test_the_weighted_mean_loss_is_that_of_the_reweighted_data() -> None:
    """A weight of 3 is the row three times: the loss is an expectation over a distribution of data."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([1.0, 3.0, 0.0, 2.0, 1.0, 1.0])
    model = LinearAutoencoder(LinearAutoencoderConfig(d_in=4, d_latent=2))
    repeated = x.repeat_interleave(weights.long(), dim=0)
    weighted = (weights * model.nll(x)).sum() / weights.sum()
    assert torch.allclose(weighted, model.nll(repeated).mean())


def test_weighted_batches_go_on_after_a_resume_as_they_would_have() -> None:
    weights = torch.rand(12, generator=torch.Generator().manual_seed(0))
    whole = drawn(ShuffledRows(X, batch_size=5, n_epochs=3, weights=weights), 8)
    rows = ShuffledRows(X, batch_size=5, n_epochs=3, weights=weights)
    begun = drawn(rows, 4)
    again = ShuffledRows(X, batch_size=5, n_epochs=3, weights=weights)
    again.load_state_dict(rows.state_dict())
    assert torch.equal(torch.cat([begun, drawn(again, 4)]), whole)


@pytest.mark.parametrize("weights", [torch.zeros(12), -torch.ones(12), torch.full((12,), torch.inf)])
def test_weights_that_cannot_be_are_refused(weights: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="weights are finite, none below 0, and not all 0"):
        ShuffledRows(X, batch_size=4, weights=weights)
