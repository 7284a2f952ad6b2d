"""Intervals for what is measured on samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its 95 % confidence interval, from `count` samples."""

    mean: float
    ci95: float
    count: int


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval; the half width is infinite for a single value.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    count = len(values)
    if count == 1:
        return Estimate(values[0], math.inf, 1)
    return Estimate(
        fmean(values), float(student.ppf(0.975, count - 1)) * stdev(values) / math.sqrt(count), count
    )


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Mean of `values - baseline`, sample by sample, with its interval.

    Raises:
        ValueError: the two are not the same samples' values (their numbers differ), or there is none.
    """
    return mean_interval([value - base for value, base in zip(values, baseline, strict=True)])


def exponential_interval(estimate: Estimate) -> tuple[float, float]:
    """The interval of `exp(mean)`: of a perplexity, or of a ratio of perplexities (infinite on overflow)."""
    low, high = estimate.mean - estimate.ci95, estimate.mean + estimate.ci95
    return math.exp(min(low, 700.0)), math.exp(high) if high < 700 else math.inf


def proportion_interval(successes: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which stays sensible at 0 and 1.

    Successes may be partial, from 0 to 1 each, which scipy's does not take: their variance is at most that of
    whole ones, so the interval is then wider than it need be.
    """
    z = NormalDist().inv_cdf(0.975)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)
