"""RULER's tasks by name, their samples as prompts, and the score of an answer."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_longrope2.data.documents import Document
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.ruler import aggregation, niah, tracking
from megatron_longrope2.evaluation.ruler.niah import Niah, niah_samples

NIAH = {
    "niah_single_1": Niah("noise"),
    "niah_single_2": Niah("books"),
    "niah_single_3": Niah("books", values="uuids"),
    "niah_multikey_1": Niah("books", needle_keys=4),
    "niah_multikey_2": Niah("needles"),
    "niah_multikey_3": Niah("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Niah("books", needle_values=4),
    "niah_multiquery": Niah("books", queries=4),
}
NEW_TOKENS = {
    **dict.fromkeys(NIAH, niah.NEW_TOKENS),
    "ruler_vt": tracking.NEW_TOKENS,
    "ruler_cwe": aggregation.COMMON_NEW_TOKENS,
    "ruler_fwe": aggregation.FREQUENT_NEW_TOKENS,
}
TASKS = tuple(NEW_TOKENS)
BOOK_TASKS = tuple(name for name, task in NIAH.items() if task.haystack == "books")
"""Tasks whose haystack is the user's books."""
NUMPY_SEED = 1234
"""Of the numbers in variable tracking, as lm-evaluation-harness seeds numpy."""


@dataclass(frozen=True)
class RulerSample:
    """A prompt and what its continuation must contain.

    Attributes:
        task: name in TASKS.
        length: tokens that prompt and answer were made for.
        prompt: the whole text, with the beginning of the answer.
        answers: values or words; the score is the share of them that is found.
        new_tokens: how many tokens the answer may have.
    """

    task: str
    length: int
    prompt: str
    answers: tuple[str, ...]
    new_tokens: int


def ruler_samples(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int = 0,
    books: Sequence[Document] = (),
) -> list[RulerSample]:
    """The first `count` samples of a task; a function of the arguments alone.

    Args:
        task: name in TASKS.
        length: tokens of prompt and answer together.
        seed: 0 gives lm-evaluation-harness's prompts with its default seed.
        books: the haystack of BOOK_TASKS.

    Raises:
        InputError: an unknown task, no books where they are needed, a tokenizer that cannot encode the
            prompts, or a length that is too short.
    """
    if task not in TASKS:
        raise InputError(f"ruler: task: {task!r} is unknown; use {', '.join(TASKS)}")
    words = [word for book in books for word in book.text.split()]
    if task in BOOK_TASKS and not words:
        raise InputError(
            f"ruler: {task} hides its needles in books; give --books a .txt, a .jsonl or a folder"
        )

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, verbose=False)["input_ids"])

    check_tokenizer(tokenizer, " ".join(words[:1000]) or niah.NOISE)
    parts = _draws(task, count_tokens, length, random.Random(seed), words)
    delimiter = "\n\n" if task == "ruler_cwe" else " "
    return [
        RulerSample(task, length, f"{text}{delimiter}{prefix}", tuple(answers), NEW_TOKENS[task])
        for text, prefix, answers in islice(parts, count)
    ]


def _draws(
    task: str, count_tokens: niah.Count, length: int, rng: random.Random, words: Sequence[str]
) -> Iterator[tuple[str, str, list[str]]]:
    if task == "ruler_vt":
        return tracking.tracking_samples(count_tokens, length, rng, np.random.RandomState(NUMPY_SEED))
    if task == "ruler_cwe":
        return aggregation.common_samples(count_tokens, length, rng)
    if task == "ruler_fwe":
        return aggregation.frequent_samples(count_tokens, length, rng)
    return niah_samples(NIAH[task], count_tokens, length, rng, words)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """See that a tokenizer can encode the haystack's text.

    Raises:
        InputError: the text vanishes, or more than a tenth of its tokens are unknown.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
    if not ids or unknown > len(ids) / 10:
        raise InputError(
            f"tokenizer: cannot encode the haystack ({unknown} of {len(ids)} tokens are unknown); use the "
            f"model's own "
            "tokenizer, or books in a language that it knows"
        )


def score_answer(answer: str, expected: Sequence[str]) -> float:
    """Share of the expected strings that an answer contains, whatever their case (RULER's
    `string_match_all`)."""
    found = re.sub(r"[\x00-\x1f]", "\n", answer.strip()).strip().lower()
    return sum(item.lower() in found for item in expected) / len(expected)
