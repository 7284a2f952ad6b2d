"""What a candidate is scored on: samples, which of their tokens count, and how much.

A score is the weighted sum of the samples' negative log-likelihoods, weighted so that `exp(score)` is a
perplexity: over the needles' answer tokens, over all tokens of documents, or the weighted geometric mean of
the two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from megatron_longrope2.data.needles import NeedleSample
from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.scoring.samples import Sample

ObjectiveKind = Literal["needle", "document", "mix"]


class Scorer(Protocol):
    """What scores samples under factors; called with the same pairs on every rank."""

    @property
    def workers(self) -> int:
        """Pairs that keep all ranks busy."""

    def __call__(self, jobs: Sequence[tuple[RopeFactors, Sample]]) -> list[float]:
        """Summed negative log-likelihood of each pair's scored tokens, >= 0, the same on every rank."""


@dataclass(frozen=True, eq=False)
class Objective:
    """The fixed samples of a search and the weight of each sample's summed negative log-likelihood."""

    samples: tuple[Sample, ...]
    weights: tuple[float, ...]


def perplexity(score: float) -> float:
    """`exp(score)`, bounded so that a hopeless candidate is a large number and no error."""
    return math.exp(min(score, 700.0))


def make_objective(
    kind: ObjectiveKind,
    needles: Sequence[NeedleSample],
    documents: Sequence[Sample],
    document_weight: float = 0.5,
) -> Objective:
    """The objective from its samples.

    Args:
        kind: "needle" (the paper's), "document" (plain perplexity, the paper's Table 6) or "mix".
        needles, documents: the samples; those that `kind` does not use are left out.
        document_weight: share of the documents in "mix", between 0 and 1.

    Raises:
        InputError: the share is out of range, or there is no sample.
    """
    if not 0 < document_weight < 1:
        raise InputError(f"objective: document_weight: {document_weight} is not between 0 and 1")
    share = {"needle": (1.0, 0.0), "document": (0.0, 1.0), "mix": (1 - document_weight, document_weight)}
    samples: list[Sample] = []
    weights: list[float] = []
    for part, part_share in zip((map(Sample.from_needle, needles), documents), share[kind], strict=True):
        if part_share == 0:
            continue
        chosen = list(part)
        if not chosen:
            raise InputError(f"objective: samples: there are none for {kind!r}; use at least 1")
        samples += chosen
        weights += [part_share / sum(sample.scored for sample in chosen)] * len(chosen)
    return Objective(tuple(samples), tuple(weights))
