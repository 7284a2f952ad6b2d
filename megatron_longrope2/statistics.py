"""Intervals for what is measured on samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev


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
    half = t_quantile(count - 1) * stdev(values) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(fmean(values), half, count)


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

    Successes may be partial ones, from 0 to 1 each: their variance is at most that of whole ones, so the
    interval is then wider than it need be.
    """
    z = NormalDist().inv_cdf(0.975)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def t_quantile(degrees: int, probability: float = 0.975) -> float:
    """Student's t quantile: exact for 1 and 2 degrees, else the expansion of Abramowitz and Stegun 26.7.5."""
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
