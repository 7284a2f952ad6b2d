"""Intervals against tabulated values and their own promise."""

import math
import random
from statistics import stdev

import pytest

from megatron_longrope2.statistics import (
    Estimate,
    exponential_interval,
    mean_interval,
    paired_difference,
    proportion_interval,
)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (3, 4.303), (10, 2.262), (64, 1.998)])
def test_interval_is_students(count: int, quantile: float) -> None:
    values = [float(n) for n in range(count)]
    expected = quantile * stdev(values) / math.sqrt(count)
    assert mean_interval(values).ci95 == pytest.approx(expected, rel=1e-3)


def test_interval_covers_the_truth_95_times_in_100() -> None:
    rnd = random.Random(0)
    hits = 0
    for _ in range(2000):
        estimate = mean_interval([rnd.gauss(3, 2) for _ in range(8)])
        hits += abs(estimate.mean - 3) <= estimate.ci95
    assert 0.935 < hits / 2000 < 0.965


def test_pairing_removes_what_samples_share() -> None:
    hard = [1.0, 5.0, 9.0, 3.0]
    difference = paired_difference([value + 0.5 for value in hard], hard)
    assert (difference.mean, difference.ci95) == (0.5, 0.0)


def test_one_value_says_nothing_of_its_error() -> None:
    assert mean_interval([2.0]).ci95 == math.inf


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_wilson() -> None:
    assert proportion_interval(10, 10) == (pytest.approx(0.7225, abs=1e-3), 1.0)
    assert proportion_interval(50, 100) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))


def test_a_perplexity_has_the_interval_of_its_logarithm() -> None:
    assert exponential_interval(Estimate(math.log(10), math.log(2), 5)) == pytest.approx((5.0, 20.0))
    assert exponential_interval(mean_interval([2.0])) == (0.0, math.inf)
    assert exponential_interval(Estimate(1e6, 1.0, 5))[1] == math.inf
