"""How an activation becomes two bytes."""

import numpy as np
import pytest

from saekit.errors import FeatureIndexError
from saekit.index.format import (
    feature_dtype,
    from_order_key,
    order_key,
    pack_values,
    ranges,
    unpack_values,
    value_exponent,
)


def round_trip(values: np.ndarray) -> np.ndarray:
    exponent = value_exponent(float(np.abs(values).max()))
    return unpack_values(pack_values(values, exponent), exponent)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 22_000.0, 1e9, 1e30])
def test_values_of_any_scale_come_back_within_a_thousandth(scale: float) -> None:
    values = (np.random.default_rng(0).lognormal(0, 2, 10_000) * scale).astype(np.float32)
    assert np.abs(round_trip(values) / values - 1).max() <= 2**-11


def test_the_largest_float16_and_far_above_it_are_not_clipped() -> None:
    values = np.array([1.0, 65504.0, 65505.0, 1e6, 3.4e38], dtype=np.float32)
    assert np.isfinite(round_trip(values)).all()
    assert round_trip(values)[-1] == pytest.approx(3.4e38, rel=1e-3)


def test_a_value_far_below_the_largest_stays_active_and_close() -> None:
    values = np.array([1000.0, 1e-7, 1e-9, 1e-30, -1e-30], dtype=np.float32)
    found = round_trip(values)
    assert (np.sign(found) == np.sign(values)).all()
    assert np.abs(found - values).max() <= 1000.0 * 2**-38


def test_an_infinite_latent_is_refused() -> None:
    with pytest.raises(FeatureIndexError, match="inf"):
        value_exponent(float("inf"))


def test_order_keys_sort_like_the_values_and_give_them_back() -> None:
    packed = np.random.default_rng(0).normal(size=1000).astype(np.float16)
    assert (np.sort(packed) == from_order_key(np.sort(order_key(packed)))).all()


def test_ranges_concatenates_runs_of_any_length() -> None:
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []


def test_feature_ids_take_four_bytes_only_above_65536() -> None:
    assert (feature_dtype(65_536).itemsize, feature_dtype(65_537).itemsize) == (2, 4)
