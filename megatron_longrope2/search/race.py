"""Exact pruning: which (candidate, sample) pairs still have to be scored to know the k best candidates.

A candidate's score is the sum of its samples' losses, none of which is negative, so a partial sum bounds the
score from below. A candidate whose partial sum is above the k-th best full score known cannot be among the k
best and is dropped. Sums are `math.fsum`, which rounds the exact sum once: they do not depend on the order of
the samples, and a partial one is never above the full one, in floating point too. So the k best and their
scores are those of a full evaluation, whatever the order and however many workers.

The candidate with the lowest partial sum is always advanced first. No order does less work for a given order
of the samples: a candidate that is not among the k best stops as soon as its sum passes the k-th best score.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any


class Race:
    """The evaluation of one generation.

    Args:
        candidates: how many.
        samples: losses that make up a score.
        keep: k, how many of the best must be known exactly.
        incumbents: scores that are known already and compete for the k places (the parents).
        difficulty: expected loss of each sample, [samples]; the hardest are scored first. Until the first
            candidate is complete they stand in for its own losses, the mean over complete candidates.
        prune: False scores every pair (for comparison).
    """

    def __init__(
        self,
        candidates: int,
        samples: int,
        keep: int,
        incumbents: Sequence[float] = (),
        difficulty: Sequence[float] | None = None,
        prune: bool = True,
    ) -> None:
        self.losses: list[dict[int, float]] = [{} for _ in range(candidates)]
        self.samples = samples
        self.keep = keep
        self.incumbents = list(incumbents)
        self.prior = list(difficulty or [0.0] * samples)
        self.prune = prune

    @property
    def evaluations(self) -> int:
        """Pairs that were scored."""
        return sum(len(losses) for losses in self.losses)

    @property
    def failed(self) -> int:
        """Candidates with a loss that is NaN or infinite."""
        return sum(not all(map(math.isfinite, losses.values())) for losses in self.losses)

    @property
    def threshold(self) -> float:
        """The k-th best full score so far: infinite while there are fewer."""
        full = [self._partial(c) for c in range(len(self.losses)) if self._complete(c)]
        best = sorted(score for score in [*self.incumbents, *full] if score < math.inf)
        return best[self.keep - 1] if self.prune and len(best) >= self.keep else math.inf

    @property
    def difficulty(self) -> list[float]:
        """Mean loss of each sample over the complete candidates, [samples]; at first, the prior."""
        complete = [
            losses
            for c, losses in enumerate(self.losses)
            if self._complete(c) and self._partial(c) < math.inf
        ]
        if not complete:
            return self.prior
        return [math.fsum(losses[s] for losses in complete) / len(complete) for s in range(self.samples)]

    def jobs(self, count: int) -> list[tuple[int, int]]:
        """The next (candidate, sample) pairs for `count` workers; fewer near the end, none after it."""
        threshold = self.threshold
        partial = {c: self._partial(c) for c in range(len(self.losses)) if not self._complete(c)}
        alive = sorted((total, c) for c, total in partial.items() if total <= threshold and total < math.inf)
        difficulty = self.difficulty
        order = sorted(range(self.samples), key=lambda s: (-difficulty[s], s))
        missing = [[(c, s) for s in order if s not in self.losses[c]] for _, c in alive[:count]]
        jobs = [pairs[depth] for depth in range(self.samples) for pairs in missing if depth < len(pairs)]
        return jobs[:count]

    def record(self, candidate: int, sample: int, loss: float) -> None:
        """Take in a loss (not negative; NaN or infinite is infinitely bad and ends the candidate)."""
        self.losses[candidate][sample] = loss if math.isfinite(loss) else math.inf

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
            [(s, loss if loss < math.inf else None) for s, loss in sorted(losses.items())]
            for losses in self.losses
        ]

    def restore(self, progress: list[Any]) -> None:
        """Take in what `progress` returned."""
        for candidate, pairs in enumerate(progress):
            for sample, loss in pairs:
                self.record(candidate, sample, math.inf if loss is None else loss)

    def _complete(self, candidate: int) -> bool:
        return len(self.losses[candidate]) == self.samples

    def _partial(self, candidate: int) -> float:
        return math.fsum(self.losses[candidate].values())
