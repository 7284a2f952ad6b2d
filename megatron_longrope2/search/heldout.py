"""Comparing factors on samples that none of them was made on, paired by sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.search.objective import Sample, Scorer, perplexity

HELD_OUT_DEPTHS = tuple(i / 9 for i in range(10))


@dataclass(frozen=True)
class Paired:
    """A mean difference and half its 95 % confidence interval: `delta_nll +- ci95`, nats a token."""

    delta_nll: float
    ci95: float


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95 % confidence interval (Student's t; infinite for a single value)."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.inf
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, t_quantile(count - 1) * math.sqrt(variance / count)


def t_quantile(df: int) -> float:
    """The 97.5 % quantile of Student's t: tabulated up to 4 degrees of freedom, then its expansion in 1/df.

    Abramowitz and Stegun 26.7.5; the error is below 0.003.
    """
    if df <= 4:
        return (12.706, 4.303, 3.182, 2.776)[df - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / df ** (power + 1) for power, term in enumerate(terms))


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """`first` minus `second`, sample by sample: positive is worse than `second`.

    Args:
        first, second: negative log-likelihood per token of each sample, in the same order.
    """
    return Paired(*mean_interval([a - b for a, b in zip(first, second, strict=True)]))


def score_samples(
    scorer: Scorer, methods: Mapping[str, RopeFactors], samples: Sequence[Sample], progress: bool = False
) -> dict[str, list[float]]:
    """Negative log-likelihood per scored token of each sample under each method's factors."""
    jobs = [(name, sample) for name in methods for sample in samples]
    scores: dict[str, list[float]] = {name: [] for name in methods}
    with tqdm(total=len(jobs), desc="held-out needles", unit="sample", disable=not progress) as bar:
        for start in range(0, len(jobs), scorer.workers):
            batch = jobs[start : start + scorer.workers]
            losses = scorer([(methods[name], sample) for name, sample in batch])
            for (name, sample), loss in zip(batch, losses, strict=True):
                scores[name].append(loss / sample.scored)
            bar.update(len(batch))
    return scores


def compare(scores: Mapping[str, Sequence[float]], winner: str) -> dict[str, Any]:
    """What a report says of held-out scores.

    Args:
        scores: negative log-likelihood per token of each sample, for each method.
        winner: the method that the others are compared with.

    Returns:
        `samples`; `methods` {name: {`nll`, `ci95`, `perplexity`}}; `comparisons` {baseline: {`delta_nll`,
        `ci95`}}, winner minus baseline, so that negative is better.
    """
    methods = {}
    for name, values in scores.items():
        mean, ci95 = mean_interval(values)
        methods[name] = {"nll": mean, "ci95": ci95, "perplexity": perplexity(mean)}
    comparisons = {
        name: asdict(paired(scores[winner], values)) for name, values in scores.items() if name != winner
    }
    return {"samples": len(scores[winner]), "methods": methods, "comparisons": comparisons}
