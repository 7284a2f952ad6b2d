"""Comparing factors on needles that none of them was made on, paired by sample."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron_longrope2.rope import AttentionFactor, RopeFactors, yarn_attention_factor
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import Scorer
from megatron_longrope2.search.candidate import perplexity
from megatron_longrope2.search.space import SearchSpace
from megatron_longrope2.statistics import mean_interval, paired_difference

HELD_OUT_DEPTHS = tuple(i / 9 for i in range(10))


def comparison_methods(
    space: SearchSpace, winner: RopeFactors, given: Sequence[RopeFactors]
) -> dict[str, RopeFactors]:
    """The winner first, then the closed-form methods at its critical dimension, and the warm starts."""
    methods = {winner.method: winner}
    for name in ("none", "pi", "ntk", "yarn", "ntk-rcd", "yarn-rcd"):
        methods |= {one.method: one for one in space.closed_form(name, winner.critical_dim)}
    temperature = AttentionFactor(long=yarn_attention_factor(winner.scale))
    methods["yarn+attention"] = replace(methods["yarn"], attention_factor=temperature)
    return methods | {f"given {number}: {one.method}": one for number, one in enumerate(given)}


def score_samples(
    scorer: Scorer, methods: Mapping[str, RopeFactors], samples: Sequence[Sample]
) -> dict[str, list[float]]:
    """Negative log-likelihood per scored token of each sample under each method's factors."""
    factors = [one for one in methods.values() for _ in samples]
    scores = scorer([*samples] * len(methods), factors, description="held-out needles")
    losses = [found.total / len(found.nll) for found in scores]
    size = len(samples)
    return {name: losses[size * number : size * (number + 1)] for number, name in enumerate(methods)}


def compare(scores: Mapping[str, Sequence[float]], winner: str) -> dict[str, Any]:
    """What a report says of held-out scores.

    Args:
        scores: negative log-likelihood per token of each sample, for each method.
        winner: the method that the others are compared with.

    Returns:
        `samples`; `methods` {name: {`nll`, `ci95`, `perplexity`}}; `comparisons` {baseline: {`delta_nll`,
        `ci95`}}, winner minus baseline, so that negative is better.
    """
    intervals = {name: mean_interval(values) for name, values in scores.items()}
    differences = {
        name: paired_difference(scores[winner], values) for name, values in scores.items() if name != winner
    }
    return {
        "samples": len(scores[winner]),
        "methods": {
            name: {"nll": nll.mean, "ci95": nll.ci95, "perplexity": perplexity(nll.mean)}
            for name, nll in intervals.items()
        },
        "comparisons": {
            name: {"delta_nll": difference.mean, "ci95": difference.ci95}
            for name, difference in differences.items()
        },
    }
