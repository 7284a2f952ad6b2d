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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from megatron_longrope2.rope.frequencies import FloatArray

Known = tuple[ArrayLike, Sequence[float]]
"""A candidate's vector, [dimensions], and its loss on every sample, [samples]."""


class Race:
    """The evaluation of one generation.

    Args:
        vectors: each candidate's, [dimensions], positive: those whose ratios are near 1 are expected to have
            like losses.
        samples: losses that make up a score.
        keep: k, how many of the best must be known exactly.
        known: candidates that compete for the k places and are scored already (the parents).
        prune: False scores every pair (for comparison).
    """

    def __init__(
        self,
        vectors: Sequence[ArrayLike],
        samples: int,
        keep: int,
        known: Sequence[Known] = (),
        prune: bool = True,
    ) -> None:
        self.samples = samples
        self.keep = keep
        self.prune = prune
        self.incumbents = [math.fsum(losses) for _, losses in known]
        candidates = len(vectors)
        self._nearness = _nearness([*vectors, *(vector for vector, _ in known)])[:candidates]
        # A row for each candidate, then for each known one. NaN: not scored.
        self._table = np.full((candidates + len(known), samples), np.nan)
        self._table[candidates:] = np.reshape([losses for _, losses in known], (-1, samples))
        self.losses = self._table[:candidates]

    @property
    def evaluations(self) -> int:
        """Pairs that were scored."""
        return int(np.count_nonzero(~np.isnan(self.losses)))

    @property
    def failed(self) -> int:
        """Candidates with a loss that is NaN or infinite."""
        return int(np.isinf(self.losses).any(axis=1).sum())

    @property
    def threshold(self) -> float:
        """The k-th best full score so far: infinite while there are fewer."""
        full = [self._partial(c) for c in range(len(self.losses)) if self._complete(c)]
        best = sorted(score for score in [*self.incumbents, *full] if score < math.inf)
        return best[self.keep - 1] if self.prune and len(best) >= self.keep else math.inf

    def expected(self, candidate: int) -> FloatArray:
        """Expected losses, [samples]: the others' mean, weighted by nearness; 0 where nothing is known."""
        scored = np.isfinite(self._table)
        weights = self._nearness[candidate] @ scored
        sums = self._nearness[candidate] @ np.where(scored, self._table, 0)
        return np.divide(sums, weights, out=np.zeros(self.samples), where=weights > 0)

    def jobs(self, count: int) -> list[tuple[int, int]]:
        """The next (candidate, sample) pairs for `count` workers; fewer near the end, none after it."""
        threshold = self.threshold
        partial = {c: self._partial(c) for c in range(len(self.losses)) if not self._complete(c)}
        alive = sorted((total, c) for c, total in partial.items() if total <= threshold and total < math.inf)
        missing = [
            [(c, s) for s in self._hardest_first(c) if np.isnan(self.losses[c, s])] for _, c in alive[:count]
        ]
        jobs = [pairs[depth] for depth in range(self.samples) for pairs in missing if depth < len(pairs)]
        return jobs[:count]

    def record(self, candidate: int, sample: int, loss: float) -> None:
        """Take in a loss (not negative; NaN or infinite is infinitely bad and ends the candidate)."""
        self.losses[candidate, sample] = loss if math.isfinite(loss) else math.inf

    def run(self, score: Callable[[list[tuple[int, int]]], Sequence[float]], workers: int) -> None:
        """Score what is needed, as many pairs at once as there are workers; `score` gives pairs' losses."""
        while pairs := self.jobs(workers):
            for (candidate, sample), loss in zip(pairs, score(pairs), strict=True):
                self.record(candidate, sample, loss)

    def scores(self) -> list[float]:
        """Full score of each candidate, [candidates]; infinite where it was dropped or failed."""
        return [self._partial(c) if self._complete(c) else math.inf for c in range(len(self.losses))]

    def progress(self) -> list[list[tuple[int, float | None]]]:
        """Everything recorded, as plain JSON values (None: infinite)."""
        return [
            [(s, loss if loss < math.inf else None) for s, loss in enumerate(losses) if not math.isnan(loss)]
            for losses in self.losses.tolist()
        ]

    def restore(self, progress: list[Any]) -> None:
        """Take in what `progress` returned."""
        for candidate, pairs in enumerate(progress):
            for sample, loss in pairs:
                self.record(candidate, sample, math.inf if loss is None else loss)

    def _hardest_first(self, candidate: int) -> list[int]:
        return np.argsort(-self.expected(candidate), kind="stable").tolist()

    def _complete(self, candidate: int) -> bool:
        return not np.isnan(self.losses[candidate]).any()

    def _partial(self, candidate: int) -> float:
        row = self.losses[candidate]
        return math.fsum(row[~np.isnan(row)])


def _nearness(vectors: Sequence[ArrayLike]) -> FloatArray:
    """What each says of the others, [vectors, vectors]: inverse squared distance of the logarithms."""
    logs = np.log(np.stack([np.asarray(vector, dtype=float) for vector in vectors]))
    squared = np.square(logs[:, None] - logs[None]).sum(axis=-1)
    weights = 1 / (squared + 1e-12)  # finite where two are the same
    np.fill_diagonal(weights, 0)  # nothing of itself
    return weights
