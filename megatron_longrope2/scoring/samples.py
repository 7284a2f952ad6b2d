"""Texts, and which of their tokens are scored."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.data.documents import Document
from megatron_longrope2.data.needles import NeedleSample, books_for
from megatron_longrope2.data.tokenizer import leading_bos
from megatron_longrope2.errors import InputError


@dataclass(frozen=True, eq=False)
class Sample:
    """A text of T tokens, some of which are scored.

    Attributes:
        tokens: int64 [T].
        mask: bool [T]; True where the token itself is scored, as predicted from the tokens before it. The
            first token has none before it and is never scored.
    """

    tokens: Tensor
    mask: Tensor

    @classmethod
    def from_needle(cls, needle: NeedleSample) -> "Sample":
        """A needle sample, of which the answer is scored."""
        return cls(needle.tokens, needle.answer_mask)

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return int(self.mask[1:].sum())


def document_samples(
    tokenizer: PreTrainedTokenizerFast, books: Iterable[Document], count: int, length: int, seed: int
) -> list[Sample]:
    """Stretches of `length` tokens of the first books that are long enough, every token scored.

    The books, of which there are `books_for` so many samples, take turns.

    Raises:
        InputError: no book is long enough.
    """
    head = leading_bos(tokenizer)
    room = length - len(head)
    enough: list[list[int]] = []
    longest = 0
    for book in books:
        ids = tokenizer(book.text, add_special_tokens=False, verbose=False)["input_ids"]
        longest = max(longest, len(ids))
        if len(ids) >= room:
            enough.append(ids)
        if len(enough) == books_for(count, length):
            break
    if not enough:
        raise InputError(f"books: the longest has {longest} tokens, {room} are needed; add longer ones")
    mask = torch.arange(length) > 0
    samples = []
    for index in range(count):
        ids = enough[index % len(enough)]
        start = random.Random(f"document/{seed}/{index}").randint(0, len(ids) - room)
        samples.append(Sample(torch.tensor(head + ids[start : start + room], dtype=torch.int64), mask))
    return samples
