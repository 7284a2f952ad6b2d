"""The interface through which search and evaluation score tokens, whatever holds the model.

A scorer takes samples (tokens, and which of them count) and returns for each scored token its negative
log-likelihood and whether it was the model's first choice. Logits exist for the scored tokens only, a
thousand at a time. A sample of at most the original length is seen with the original RoPE, a longer one with
the rescaled RoPE.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.scoring.samples import Sample

# Positions whose logits exist at once: [LOGIT_ROWS, vocabulary].
LOGIT_ROWS = 1024


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of the n scored tokens of a sample, in their order.

    Attributes:
        nll: float32 [n], nats.
        correct: bool [n], whether the token is the argmax of the logits. When all tokens of an answer are,
            greedy generation writes that answer: each of its steps sees the same tokens as the one
            teacher-forced pass.
    """

    nll: Tensor
    correct: Tensor

    @property
    def total(self) -> float:
        """Summed negative log-likelihood, nats: never negative; infinite where a token's is, or is NaN."""
        total = float(self.nll.clamp(min=0).double().sum())
        return total if math.isfinite(total) else math.inf


class Scorer(Protocol):
    """Scores samples; in a job of several processes every rank calls it with the same ones.

    Attributes:
        workers: samples a call that keep all ranks busy.
    """

    workers: int

    def __call__(
        self,
        samples: Sequence[Sample],
        factors: Sequence[RopeFactors] | None = None,
        description: str = "",
    ) -> list[TokenScores]:
        """Scores of each sample, in order, the same on every rank.

        Args:
            samples: of any lengths.
            factors: the RoPE factors under which each sample is scored; None: the model's own.
            description: of the progress bar; none is shown without it.

        Raises:
            InputError: a sample's length does not suit the parallel layout.
        """
        ...

    def logits(self, samples: Sequence[Sample], description: str = "") -> list[Tensor]:
        """Logits that predict each sample's scored tokens, in their order, the same on every rank.

        For samples of few scored tokens: those of all samples are there at once.

        Returns:
            float32 [scored tokens, vocabulary] of each sample, on the CPU; a model may pad its vocabulary.

        Raises:
            InputError: as a call.
        """
        ...
