"""Perplexity of text: in the short window, by position in long documents, and by a sliding window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.records import Measured
from megatron_longrope2.evaluation.settings import PerplexitySettings, TextSettings
from megatron_longrope2.evaluation.subject import LoadedSubject
from megatron_longrope2.ranks import on_main
from megatron_longrope2.scoring.samples import Sample, document_samples
from megatron_longrope2.scoring.scorer import Scorer
from megatron_longrope2.statistics import Estimate, exponential_interval, mean_interval, paired_difference


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over texts.

    Attributes:
        nll: summed negative log-likelihood of each text, nats.
        tokens: scored tokens of each text.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of_tokens(cls, texts: Sequence[Tensor]) -> "Perplexity":
        """From the negative log-likelihoods of each text's tokens, nats [n]."""
        return cls(tuple(float(text.double().sum()) for text in texts), tuple(map(len, texts)))

    @property
    def value(self) -> float:
        """Perplexity over all tokens (infinite when it overflows)."""
        mean = sum(self.nll) / sum(self.tokens)
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def per_token(self) -> list[float]:
        """Mean negative log-likelihood of each text, nats a token."""
        return [nll / tokens for nll, tokens in zip(self.nll, self.tokens, strict=True)]

    def difference(self, baseline: "Perplexity") -> Estimate:
        """Paired difference, self minus baseline, of nats a token over the same texts."""
        return paired_difference(self.per_token, baseline.per_token)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `ci95` is the perplexity's interval over texts, null where it is unbounded."""
        interval = exponential_interval(mean_interval(self.per_token))
        return {
            "perplexity": self.value if self.value < math.inf else None,
            "ci95": list(interval) if max(interval) < math.inf else None,
            "nll": list(self.nll),
            "tokens": list(self.tokens),
        }


def measure_perplexity(subject: LoadedSubject, texts: TextSettings, settings: PerplexitySettings) -> Measured:
    """Perplexity of texts of the original length, of long ones by position, and by sliding windows.

    Returns:
        A result with `short`, `positions` [{`start`, `end`, ...}] and `sliding` [{`window`, ...}].

    Raises:
        InputError: as `Subject.books`, `document_samples` and `sliding_perplexity`.
    """
    original, long = subject.original_length, settings.long_length or subject.target_length
    beyond = subject.beyond_window([*([long] if settings.long_texts else []), *settings.windows])

    def draw(count: int, length: int) -> list[Sample]:
        """Samples on every rank, of books that the main rank reads and tokenizes."""
        books = subject.books(texts, length)
        return on_main(lambda: document_samples(subject.tokenizer, books, count, length, texts.seed))

    result: dict[str, Any] = {"short": None, "positions": [], "sliding": []}
    lines = []
    if settings.short_texts:
        short = text_perplexity(subject.scorer, draw(settings.short_texts, original))
        result["short"] = short.to_dict()
        lines.append(f"short window, {original} tokens: {short.value:.3f}")
    if settings.long_texts:
        samples = draw(settings.long_texts, long)
        buckets = position_perplexity(subject.scorer, samples, octave_edges(original, long))
        for (start, end), measured in buckets.items():
            result["positions"].append({"start": start, "end": end, **measured.to_dict()})
            lines.append(f"positions {start}-{end}: {measured.value:.3f}")
    if settings.windows:
        documents = on_main(
            lambda: [
                torch.tensor(subject.tokenizer(book.text, verbose=False)["input_ids"])
                for book in subject.books(texts)
            ]
        )
        for window in settings.windows:
            measured = sliding_perplexity(subject.scorer, documents, window, settings.stride)
            result["sliding"].append({"window": window, **measured.to_dict()})
            lines.append(f"sliding window of {window}: {measured.value:.3f}")
    return Measured(result, beyond, "\n".join(lines))


def text_perplexity(scorer: Scorer, texts: Sequence[Sample]) -> Perplexity:
    """Perplexity of texts, each read alone from its first token.

    With texts of at most the original length this is the short window's perplexity: the original RoPE
    applies.

    Args:
        texts: for example `scoring.samples.document_samples(tokenizer, books, count, length, seed)`.
    """
    return Perplexity.of_tokens([score.nll for score in scorer(texts, description="perplexity")])


def position_perplexity(
    scorer: Scorer, texts: Sequence[Sample], edges: Sequence[int]
) -> dict[tuple[int, int], Perplexity]:
    """Perplexity of long documents by the position of the predicted token.

    Args:
        texts: documents, longer than the original length to see the rescaled RoPE; every position counts that
            the mask scores.
        edges: ascending positions; bucket k holds positions `edges[k] <= p < edges[k + 1]`.

    Returns:
        A perplexity for each bucket (start, end); one that no text reaches is left out.
    """
    scores = scorer(texts, description="perplexity by position")
    result = {}
    for start, end in pairwise(edges):
        parts = []
        for text, score in zip(texts, scores, strict=True):
            places = text.mask[1:].nonzero().squeeze(1) + 1
            chosen = score.nll[(places >= start) & (places < end)]
            if len(chosen):
                parts.append(chosen)
        if parts:
            result[start, end] = Perplexity.of_tokens(parts)
    return result


def octave_edges(original_length: int, length: int) -> list[int]:
    """Bucket edges 1, L/4, L/2, L, 2L, ... up to `length`."""
    edges = [1, original_length // 4, original_length // 2]
    while original_length < length:
        edges.append(original_length)
        original_length *= 2
    return [edge for edge in edges if edge < length] + [length]


def sliding_perplexity(scorer: Scorer, documents: Sequence[Tensor], window: int, stride: int) -> Perplexity:
    """Perplexity by a sliding window (Press et al. 2022; with a stride of 256 as published for Position
    Interpolation, Chen et al. 2023, section 3.3).

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
    scores = scorer(samples, description="sliding window")
    by_document: dict[int, list[Tensor]] = {}
    for owner, score in zip(owners, scores, strict=True):
        by_document.setdefault(owner, []).append(score.nll)
    return Perplexity.of_tokens([torch.cat(parts) for parts in by_document.values()])
