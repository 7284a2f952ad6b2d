"""Samples: stretches of books, and what of them is scored."""

import pytest
import torch

from megatron_longrope2.data.documents import Document
from megatron_longrope2.errors import InputError
from megatron_longrope2.scoring.samples import Sample, document_samples


class _Letters:
    """A tokenizer of one token a letter, that puts a BOS in front."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict:  # noqa: ARG002
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


BOOKS = [Document("short", "ab"), Document("long", "abcdefghij" * 3), Document("other", "klmnopqrst" * 2)]


def test_documents_are_stretches_of_books_with_one_bos() -> None:
    samples = document_samples(_Letters(), BOOKS, 5, 16, 0)
    texts = ["".join(map(chr, sample.tokens[1:].tolist())) for sample in samples]
    assert all(int(sample.tokens[0]) == 1 and sample.scored == 15 for sample in samples)
    assert all(any(text in book.text for book in BOOKS[1:]) for text in texts)
    assert any(text in BOOKS[1].text for text in texts)
    assert any(text in BOOKS[2].text for text in texts)
    again = document_samples(_Letters(), BOOKS, 5, 16, 0)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(samples, again, strict=True))
    assert texts != [
        "".join(map(chr, s.tokens[1:].tolist())) for s in document_samples(_Letters(), BOOKS, 5, 16, 1)
    ]


def test_the_first_token_is_never_scored() -> None:
    assert Sample(torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)).scored == 3


def test_books_too_short_are_refused() -> None:
    with pytest.raises(InputError, match="the longest has 30 tokens, 99 are needed"):
        document_samples(_Letters(), BOOKS, 1, 100, 0)
