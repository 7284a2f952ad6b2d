"""Exact pruning: which (candidate, sample) pairs still have to be scored to know the k best candidates.

A candidate's score is the sum of its samples' losses, none of which is negative, so a partial sum bounds the
score from below. A candidate whose partial sum is above the k-th best full score known cannot be among the k
best and is dropped. Sums are `math.fsum`, which rounds the exact sum once: they do not depend on the order of
the samples, and a partial one is never above the full one, in floating point too. So the k best and their
scores are those of a full evaluation, whatever the order and however many workers.

The candidate with the lowest partial sum is always advanced first. No order does less work for a given order
of the samples: a candidate that is not among the k best stops as soon as its sum passes the k-th best score.
Each candidate meets the samples in an order of its own, the ones it is expected to fail first.
"""

import math
from collections.abc import Sequence

import numpy as np

from megatron_longrope2.rope.frequencies import FloatArray
from megatron_longrope2.search.candidate import Candidate

Pair = tuple[Candidate, int]
"""A candidate and the number of a sample."""


class Race:
    """The evaluation of candidates against each other; their losses say how far it is.

    Args:
        candidates: those that are scored; where a vector's ratios to another's are near 1, like losses are
            expected.
        keep: k, how many of the best must be known exactly.
        known: complete candidates that compete for the k places (the parents).
        prune: False scores every pair (for comparison).
    """

    def __init__(
        self, candidates: Sequence[Candidate], keep: int, known: Sequence[Candidate] = (), prune: bool = True
    ) -> None:
        self.candidates = list(candidates)
        self.known = list(known)
        self.keep = keep
        self.prune = prune
        self._nearness = _nearness([*self.candidates, *self.known])

    @property
    def threshold(self) -> float:
        """The k-th best full score so far: infinite while there are fewer."""
        best = sorted(one.score for one in [*self.known, *self.candidates] if one.score < math.inf)
        return best[self.keep - 1] if self.prune and len(best) >= self.keep else math.inf

    def expected(self, number: int) -> FloatArray:
        """Losses expected of a candidate, [samples]: the others' mean, weighted by nearness, else 0."""
        table = np.stack([one.losses for one in [*self.candidates, *self.known]])
        scored = np.isfinite(table)
        weights = self._nearness[number] @ scored
        sums = self._nearness[number] @ np.where(scored, table, 0)
        return np.divide(sums, weights, out=np.zeros(table.shape[1]), where=weights > 0)

    def pairs(self, count: int) -> list[Pair]:
        """The next pairs to score for `count` workers; fewer near the end, none after it."""
        threshold = self.threshold
        partial = {n: one.partial_score for n, one in enumerate(self.candidates) if not one.complete}
        alive = sorted((total, n) for n, total in partial.items() if total <= threshold and total < math.inf)
        missing = [self._hardest_first(n) for _, n in alive[:count]]
        longest = max(map(len, missing), default=0)
        pairs = [several[depth] for depth in range(longest) for several in missing if depth < len(several)]
        return pairs[:count]

    def _hardest_first(self, number: int) -> list[Pair]:
        """The pairs of a candidate that are not scored yet."""
        candidate = self.candidates[number]
        order = np.argsort(-self.expected(number), kind="stable").tolist()
        return [(candidate, sample) for sample in order if math.isnan(candidate.losses[sample])]


def _nearness(candidates: Sequence[Candidate]) -> FloatArray:
    """What each says of the others, [candidates, candidates]: inverse squared distance of the logarithms."""
    logs = np.log(np.array([one.vector for one in candidates], dtype=float))
    squared = np.square(logs[:, None] - logs[None]).sum(axis=-1)
    weights = 1 / (squared + 1e-12)  # finite where two are the same
    np.fill_diagonal(weights, 0)  # nothing of itself
    return weights
