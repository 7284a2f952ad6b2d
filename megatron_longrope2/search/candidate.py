"""One candidate of a search: its factors, and the losses that are known of them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.rope.frequencies import FloatArray


@dataclass(eq=False)
class Candidate:
    """Factors under evaluation.

    Attributes:
        factors: what the model is scored under.
        losses: float64 [samples], not negative, each a share of the score: NaN where a sample is not scored
            yet, infinite where the model's loss was NaN or infinite, which ends the candidate.
        origin: what it was made from, for those who breed it further.
    """

    factors: RopeFactors
    losses: FloatArray
    origin: Any = None

    @classmethod
    def unscored(cls, factors: RopeFactors, samples: int, origin: Any = None) -> "Candidate":
        """A candidate of which nothing is known yet."""
        return cls(factors, np.full(samples, np.nan), origin)

    @property
    def vector(self) -> tuple[float, ...]:
        """What the model sees, and nothing else: equal vectors have equal scores."""
        return (*self.factors.long_factor, self.factors.attention_factor.long)

    @property
    def scored(self) -> int:
        """Number of samples that are scored."""
        return int(np.count_nonzero(~np.isnan(self.losses)))

    @property
    def complete(self) -> bool:
        """Whether every sample is scored."""
        return self.scored == len(self.losses)

    @property
    def partial_score(self) -> float:
        """Sum of the known losses, rounded once: a lower bound of the score, whatever their order."""
        return math.fsum(self.losses[~np.isnan(self.losses)])

    @property
    def score(self) -> float:
        """Mean negative log-likelihood a token: lower is better, infinite while it is not complete."""
        return self.partial_score if self.complete else math.inf

    @property
    def failed(self) -> bool:
        """Whether a loss was NaN or infinite."""
        return bool(np.isinf(self.losses).any())

    @property
    def order(self) -> tuple[float, tuple[float, ...]]:
        """Total order of scores: two different vectors never compare equal."""
        return self.score, self.vector

    def losses_as_json(self) -> list[float | str | None]:
        """The losses as plain JSON values: null where not scored, "failed" where infinite."""
        return [
            None if math.isnan(loss) else loss if loss < math.inf else "failed"
            for loss in self.losses.tolist()
        ]

    def restore_losses(self, losses: list[Any]) -> None:
        """Take in what `losses_as_json` returned."""
        self.losses[:] = [
            math.nan if loss is None else math.inf if loss == "failed" else loss for loss in losses
        ]


def perplexity(score: float) -> float:
    """`exp(score)`, bounded so that a hopeless candidate is a large number and no error."""
    return math.exp(min(score, 700.0))
