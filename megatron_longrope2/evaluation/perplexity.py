"""Perplexity of text: in the short window, by position in long documents, and by a sliding window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from megatron_longrope2.errors import InputError
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import Scorer
from megatron_longrope2.statistics import Estimate, exponential_interval, mean_interval, paired_difference

STRIDE = 256
"""Tokens between two sliding windows (Chen et al. 2023, Position Interpolation, section 3.3)."""


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over texts.

    Attributes:
        nll: summed negative log-likelihood of each text, nats.
        tokens: scored tokens of each text.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def value(self) -> float:
        """Perplexity over all tokens (infinite when it overflows)."""
        mean = sum(self.nll) / sum(self.tokens)
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def per_token(self) -> list[float]:
        """Mean negative log-likelihood of each text, nats a token."""
        return [nll / tokens for nll, tokens in zip(self.nll, self.tokens, strict=True)]

    def interval(self) -> Estimate:
        """Mean over texts of the negative log-likelihood per token, with its 95 % interval."""
        return mean_interval(self.per_token)

    def difference(self, baseline: "Perplexity") -> Estimate:
        """Paired difference, self minus baseline, of nats a token over the same texts."""
        return paired_difference(self.per_token, baseline.per_token)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `ci95` is the perplexity's interval over texts, null where it is unbounded."""
        value = self.value if self.value < math.inf else None
        interval = exponential_interval(self.interval())
        return {
            "perplexity": value,
            "ci95": list(interval) if max(interval) < math.inf else None,
            "nll": list(self.nll),
            "tokens": list(self.tokens),
        }


def text_perplexity(scorer: Scorer, texts: Sequence[Sample], description: str = "perplexity") -> Perplexity:
    """Perplexity of texts, each seen alone from its first token.

    With texts of at most the original length this is the short window's perplexity: the original RoPE
    applies.

    Args:
        texts: for example `scoring.samples.document_samples(tokenizer, books, count, length, seed)`.
        description: of the progress bar; none is shown if empty.
    """
    scores = scorer(texts, description=description)
    return Perplexity(
        tuple(float(score.nll.double().sum()) for score in scores), tuple(len(score.nll) for score in scores)
    )


def position_perplexity(
    scorer: Scorer, texts: Sequence[Sample], edges: Sequence[int], description: str = "perplexity by position"
) -> dict[tuple[int, int], Perplexity]:
    """Perplexity of long documents by the position of the predicted token.

    Args:
        texts: documents, longer than the original length to see the rescaled RoPE; every position counts that
            the mask scores.
        edges: ascending positions; bucket k holds positions `edges[k] <= p < edges[k + 1]`.

    Returns:
        A perplexity for each bucket (start, end); one that no text reaches is left out.
    """
    scores = scorer(texts, description=description)
    result = {}
    for start, end in pairwise(edges):
        parts = []
        for text, score in zip(texts, scores, strict=True):
            places = text.mask[1:].nonzero().squeeze(1) + 1
            chosen = score.nll[(places >= start) & (places < end)]
            if len(chosen):
                parts.append(chosen)
        if parts:
            result[start, end] = Perplexity(
                tuple(float(part.double().sum()) for part in parts), tuple(len(part) for part in parts)
            )
    return result


def octave_edges(original_length: int, length: int) -> list[int]:
    """Bucket edges 1, L/4, L/2, L, 2L, ... up to `length`."""
    edges = [1, original_length // 4, original_length // 2]
    while original_length < length:
        edges.append(original_length)
        original_length *= 2
    return [edge for edge in edges if edge < length] + [length]


def sliding_perplexity(
    scorer: Scorer,
    documents: Sequence[Tensor],
    window: int,
    stride: int = STRIDE,
    description: str = "sliding window",
) -> Perplexity:
    """Perplexity by a sliding window, as published for Position Interpolation (Press et al. 2022 with stride
    256).

    A window of `window` tokens moves on by `stride`; each token is scored once, in the first window that
    holds it: after the first window a token has at least `window - stride` tokens before it. A document's
    last tokens that fill no whole stride are left out.

    Args:
        documents: int64 [n] each; a document shorter than the window is left out.
        window, stride: tokens.

    Raises:
        InputError: the stride does not fit the window, or no document fills a window.
    """
    if window < 2:
        raise InputError(f"window: {window} has no token to predict; use 2 or more")
    if not 0 < stride <= window:
        raise InputError(f"stride: {stride} tokens do not fit a window of {window}; use 1 to {window}")
    samples: list[Sample] = []
    owners: list[int] = []
    for number, document in enumerate(documents):
        for start in range(0, len(document) - window + 1, stride):
            mask = torch.zeros(window, dtype=torch.bool)
            mask[1 if start == 0 else window - stride :] = True
            samples.append(Sample(document[start : start + window], mask))
            owners.append(number)
    if not samples:
        longest = max(map(len, documents), default=0)
        raise InputError(
            f"documents: the longest has {longest} tokens, a window needs {window}; give longer ones"
        )
    scores = scorer(samples, description=description)
    texts = sorted(set(owners))
    sums, counts = dict.fromkeys(texts, 0.0), dict.fromkeys(texts, 0)
    for owner, score in zip(owners, scores, strict=True):
        sums[owner] += float(score.nll.double().sum())
        counts[owner] += len(score.nll)
    return Perplexity(tuple(sums.values()), tuple(counts.values()))
