import math

import pytest
import torch

from megatron_longrope2.data.books import Book
from megatron_longrope2.data.needles import NeedleSample
from megatron_longrope2.errors import InputError
from megatron_longrope2.search.objective import Sample, document_samples, make_objective


class _Letters:
    """A tokenizer of one token a letter, that puts a BOS in front."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict:  # noqa: ARG002
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


def _needle(length: int, answer: int) -> NeedleSample:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[-answer:] = True
    return NeedleSample(torch.arange(length), mask, "key", "value", 0.0, "book")


BOOKS = [Book("short", "ab"), Book("long", "abcdefghij" * 3), Book("other", "klmnopqrst" * 2)]


def test_exp_of_a_score_is_the_perplexity_of_the_answer_tokens() -> None:
    objective = make_objective("needle", [_needle(20, 7), _needle(20, 3)], [])
    nll = [7 * math.log(2), 3 * math.log(2)]
    score = sum(w * loss for w, loss in zip(objective.weights, nll, strict=True))
    assert math.exp(score) == pytest.approx(2)


def test_mix_weighs_kinds_by_share_not_by_tokens() -> None:
    documents = document_samples(_Letters(), BOOKS, 2, 16, 0)
    objective = make_objective("mix", [_needle(16, 4)], documents, document_weight=0.25)
    nll = [4 * 2.0, 15 * 6.0, 15 * 6.0]  # 2 nats a needle token, 6 a document token
    score = sum(w * loss for w, loss in zip(objective.weights, nll, strict=True))
    assert score == pytest.approx(0.75 * 2 + 0.25 * 6)


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


def test_no_samples_and_a_wrong_share_are_refused() -> None:
    with pytest.raises(InputError, match="samples: there are none for 'needle'"):
        make_objective("needle", [], [])
    with pytest.raises(InputError, match=r"document_weight: 1.0 is not between 0 and 1"):
        make_objective("mix", [_needle(8, 2)], [], document_weight=1.0)
