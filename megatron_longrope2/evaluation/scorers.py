"""Token scores of a model, Megatron's or Hugging Face's: the one interface that all measurements use.

A scorer takes samples (tokens, and which of them count) and returns for each scored token its negative
log-likelihood and whether it was the model's first choice. Logits exist for the scored tokens only, a
thousand at a time. A sample of at most the original length is seen with the original RoPE, a longer one with
the rescaled RoPE.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from megatron_longrope2.search.objective import Sample

LOGIT_ROWS = 1024
"""Positions whose logits exist at once, [LOGIT_ROWS, vocabulary]."""


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of the n scored tokens of a sample, in their order.

    Attributes:
        nll: float32 [n], nats.
        correct: bool [n], whether the token is the argmax of the logits. All true for an answer means that
            greedy generation writes that answer: its every step sees the same tokens as the one
            teacher-forced pass.
    """

    nll: Tensor
    correct: Tensor


class Scorer(Protocol):
    """Scores samples; in a job of several processes every rank calls it with the same ones."""

    def __call__(self, samples: Sequence[Sample], description: str = "") -> list[TokenScores]:
        """Scores of each sample, in order, the same on every rank.

        Args:
            samples: of any lengths.
            description: of the progress bar; none is shown without it.
        """
        ...


class HFScorer:
    """Scores on a transformers causal language model (whose own config decides its RoPE)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], description: str = "") -> list[TokenScores]:
        """See `Scorer`."""
        bar = tqdm(samples, desc=description, unit="sample", disable=not description)
        return [self._score(sample) for sample in bar]

    def _score(self, sample: Sample) -> TokenScores:
        tokens = sample.tokens.to(self.model.device)
        rows = sample.mask[1:].nonzero().squeeze(1).to(tokens.device)
        hidden = self.model.base_model(tokens[None], use_cache=False).last_hidden_state[0, rows]
        head = self.model.get_output_embeddings()
        parts = []
        for part, labels in zip(hidden.split(LOGIT_ROWS), tokens[rows + 1].split(LOGIT_ROWS), strict=True):
            logits = head(part).float()
            parts.append((F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels))
        nll, correct = (torch.cat(list(column)).cpu() for column in zip(*parts, strict=True))
        return TokenScores(nll, correct)
