"""Metrics against values worked out by hand and against float64 NumPy."""

import math

import numpy as np
import pytest
import torch

from saekit.errors import InputError
from saekit.metrics import (
    FiringMeter,
    FVUMeter,
    ce_recovered,
    density,
    explained_variance,
    fvu,
    input_moments,
    l0,
)

LATENTS = torch.tensor([[0.0, 2.0, 0.0, 0.5], [1.0, 3.0, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0]])


def test_l0_counts_the_nonzero_latents_of_the_mean_row() -> None:
    assert l0(LATENTS).item() == pytest.approx(5 / 3)


def test_density_is_the_share_of_rows_and_sums_to_l0() -> None:
    assert density(LATENTS).tolist() == pytest.approx([1 / 3, 1, 0, 1 / 3])
    assert density(LATENTS).sum().item() == pytest.approx(l0(LATENTS).item())


def test_fvu_is_zero_for_a_copy_and_one_for_the_mean() -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert fvu(x, x).item() == 0
    assert fvu(x, x.mean(0).expand_as(x)).item() == pytest.approx(1, abs=1e-12)


def test_fvu_of_a_hand_made_case() -> None:
    x, x_hat = torch.tensor([[0.0, 0.0], [2.0, 4.0]]), torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    # mean (1, 2); squared deviation 1+4+1+4 = 10; squared error 1+1 = 2
    assert fvu(x, x_hat).item() == pytest.approx(0.2)
    assert explained_variance(x, x_hat).item() == pytest.approx(0.8)


def test_fvu_of_equal_rows_is_nan_when_exact_and_infinite_when_not() -> None:
    x = torch.ones(4, 2)
    assert math.isnan(fvu(x, x).item())
    assert math.isinf(fvu(x, x + 1).item())


@pytest.mark.parametrize("sizes", [[64], [1, 63], [7, 50, 7], [32, 0, 32]])
def test_the_fvu_meter_gives_the_fvu_of_the_whole_set_however_it_is_split(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)
    x = torch.randn(64, 4, dtype=torch.float64, generator=generator) * scale + torch.arange(64).unsqueeze(1)
    x_hat = x + 0.3 * torch.randn(64, 4, dtype=torch.float64, generator=generator)
    meter = FVUMeter(4)
    for a, b in zip(x.split(sizes), x_hat.split(sizes), strict=True):
        meter.update(a, b)
    assert meter.value().item() == pytest.approx(fvu(x, x_hat).item(), rel=1e-12)
    assert meter.mean.tolist() == pytest.approx(x.mean(0).tolist(), rel=1e-12)


def test_batch_values_do_not_average_to_the_meter_s_value() -> None:
    x = torch.tensor([[0.0], [1.0], [100.0], [101.0]], dtype=torch.float64)
    x_hat = x + 0.5
    meter = FVUMeter(1)
    meter.update(x[:2], x_hat[:2])
    meter.update(x[2:], x_hat[2:])
    mean_of_batches = (fvu(x[:2], x_hat[:2]) + fvu(x[2:], x_hat[2:])).item() / 2
    assert mean_of_batches == pytest.approx(1.0)
    assert meter.value().item() == pytest.approx(1 / 10001)


def test_the_fvu_meter_keeps_its_digits_beside_a_large_common_mean() -> None:
    generator = torch.Generator().manual_seed(2)
    x = 20_000 + torch.randn(1000, 8, generator=generator)
    x_hat = x + 0.125
    meter = FVUMeter(8)
    for a, b in zip(x.split(100), x_hat.split(100), strict=True):
        meter.update(a, b)
    exact, exact_hat = x.double().numpy(), x_hat.double().numpy()
    expected = np.square(exact - exact_hat).sum() / np.square(exact - exact.mean(0)).sum()
    assert meter.value().item() == pytest.approx(expected, rel=1e-5)


def test_the_fvu_meter_takes_bfloat16_and_is_nan_before_any_row() -> None:
    meter = FVUMeter(2)
    assert math.isnan(meter.value().item())
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    meter.update(x.bfloat16(), x.bfloat16() * 0)
    assert meter.value().item() == pytest.approx(39 / (1 + 1 + 2.25 + 2.25))


def test_the_firing_meter_agrees_with_l0_and_density_of_the_whole() -> None:
    meter = FiringMeter(4)
    assert math.isnan(meter.l0().item())
    meter.update(LATENTS[:1])
    meter.update_sparse(LATENTS[1:].nonzero()[:, 1].int(), n_rows=2)
    assert meter.l0().item() == pytest.approx(l0(LATENTS).item())
    assert meter.density().tolist() == pytest.approx(density(LATENTS).tolist())
    assert meter.silent_share().item() == 0.25


@pytest.mark.parametrize(("ce_sae", "expected"), [(3.0, 1.0), (13.0, 0.0), (4.0, 0.9), (14.0, -0.1)])
def test_ce_recovered_is_one_for_no_harm_and_zero_for_an_ablation(ce_sae: float, expected: float) -> None:
    assert ce_recovered(ce_clean=3.0, ce_sae=ce_sae, ce_ablated=13.0) == pytest.approx(expected)


def test_ce_recovered_is_nan_when_ablation_changes_nothing() -> None:
    assert math.isnan(ce_recovered(ce_clean=3.0, ce_sae=3.5, ce_ablated=3.0))


def test_input_moments_are_the_mean_and_the_mean_squared_norm_about_it() -> None:
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(3)) * 4 + 7
    mean, mean_squared_norm = input_moments(x.split(33))
    exact = x.double().numpy()
    assert mean.tolist() == pytest.approx(exact.mean(0).tolist(), rel=1e-6)
    assert mean_squared_norm == pytest.approx(np.square(exact - exact.mean(0)).sum(1).mean(), rel=1e-6)


def test_input_moments_refuse_no_rows_and_nan() -> None:
    with pytest.raises(InputError, match="no rows"):
        input_moments([])
    with pytest.raises(InputError, match="NaN or infinite"):
        input_moments([torch.tensor([[1.0, float("nan")]])])
