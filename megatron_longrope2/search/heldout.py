"""Comparing factors on samples that none of them was made on, paired by sample."""

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.search.objective import Sample, Scorer, perplexity
from megatron_longrope2.statistics import mean_interval, paired_difference

HELD_OUT_DEPTHS = tuple(i / 9 for i in range(10))


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
        nll = mean_interval(values)
        methods[name] = {"nll": nll.mean, "ci95": nll.ci95, "perplexity": perplexity(nll.mean)}
    comparisons = {}
    for name, values in scores.items():
        if name != winner:
            difference = paired_difference(scores[winner], values)
            comparisons[name] = {"delta_nll": difference.mean, "ci95": difference.ci95}
    return {"samples": len(scores[winner]), "methods": methods, "comparisons": comparisons}
