"""RULER's retrieval tasks: needles, several keys, values and queries, in noise, in other needles or in
books."""

import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.ruler.words import key_words

NEW_TOKENS = 128
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
TEMPLATE = (
    "{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. I will "
    "quiz you "
    "about the {kind} afterwards.\n{context}\nWhat {are_all} the special magic {kind} for {query} mentioned "
    "in the "
    "provided text?"
)
PREFIX = "The special magic {kind} for {query} mentioned in the provided text {are}"
DEPTHS = [round(100 * place / 39) for place in range(40)]
"""Where needles may lie in books, percent."""

Count = Callable[[str], int]
"""Tokens of a text."""


@dataclass(frozen=True)
class Niah:
    """A retrieval task.

    Attributes:
        haystack: "noise" (one sentence repeated), "needles" (other needles) or "books".
        keys, values: "words", "numbers" or "uuids".
        needle_keys, needle_values, queries: how many keys are hidden, values a key, and keys asked for.
    """

    haystack: Literal["noise", "needles", "books"]
    keys: str = "words"
    values: str = "numbers"
    needle_keys: int = 1
    needle_values: int = 1
    queries: int = 1

    @property
    def single(self) -> bool:
        """Whether one value is asked for."""
        return self.queries * self.needle_values == 1


def niah_samples(
    task: Niah, count_tokens: Count, length: int, rng: random.Random, words: Sequence[str]
) -> Iterator[tuple[str, str, list[str]]]:
    """Endless samples (text, beginning of the answer, values) of at most `length` tokens with the answer's
    128.

    Args:
        words: of the books, where the haystack is books.

    Raises:
        InputError: no sample fits the length.
    """
    step = _step(task, length)
    units = _units(task, count_tokens, length, rng, words, step)
    while True:
        for used in range(units, 0, -step):
            try:
                text, prefix, answers = _draw(task, used, rng, words)
            except ValueError:  # more needles than places
                continue
            if count_tokens(text) + NEW_TOKENS <= length:
                yield text, prefix, answers
                break
        else:
            raise InputError(f"ruler: {length} tokens are too few for the task; use a longer length")


def _step(task: Niah, length: int) -> int:
    """Sentences (of books: words) by which the haystack grows and shrinks."""
    if task.haystack == "books":
        return 500 if length >= 4096 else 10
    return 25 if length >= 4096 else 5


def _units(
    task: Niah, count_tokens: Count, length: int, rng: random.Random, words: Sequence[str], step: int
) -> int:
    """Size of the haystack: the largest step whose sample fits, judged by one sample each."""
    needles = max(task.needle_keys, task.queries) * task.needle_values
    units, total = max(step, needles), 0
    while total + NEW_TOKENS < length:
        text, _, answers = _draw(task, units, rng, words)
        total = count_tokens(text + " ".join(answers))
        if total + NEW_TOKENS > length:
            units -= step
            break
        units += step
    return max(units, needles)


def _draw(task: Niah, units: int, rng: random.Random, words: Sequence[str]) -> tuple[str, str, list[str]]:
    """One sample with a haystack of so many units; the order of the draws is the public generator's."""
    keys, values, needles = [], [], []
    for _ in range(max(task.needle_keys, task.queries)):
        keys.append(_value(task.keys, rng))
        values.append([_value(task.values, rng) for _ in range(task.needle_values)])
        needles += [NEEDLE.format(kind=task.values, key=keys[-1], value=value) for value in values[-1]]
    random.Random(42).shuffle(needles)
    context = _hide(task, needles, units, rng, words)
    asked = rng.sample(range(len(keys)), task.queries)
    queries = [keys[number] for number in asked]
    query = queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"
    kind = task.values[:-1] if task.single else task.values
    are = "is" if task.single else "are"
    text = TEMPLATE.format(
        some="A" if task.single else "Some",
        are=are,
        are_all="is" if task.single else "are all",
        kind=kind,
        context=context,
        query=query,
    )
    return (
        text,
        PREFIX.format(kind=kind, query=query, are=are),
        [v for number in asked for v in values[number]],
    )


def _hide(task: Niah, needles: list[str], units: int, rng: random.Random, words: Sequence[str]) -> str:
    if task.haystack == "books":
        return _hide_in_books(needles, units, rng, words)
    if task.haystack == "noise":
        sentences = [NOISE] * units
    else:
        sentences = [
            NEEDLE.format(kind=task.values, key=_value(task.keys, rng), value=_value(task.values, rng))
            for _ in range(units)
        ]
    places = sorted(rng.sample(range(units), len(needles)), reverse=True)
    for place, needle in zip(places, needles, strict=True):
        sentences.insert(place, needle)
    return "\n".join(sentences)


def _hide_in_books(needles: list[str], units: int, rng: random.Random, words: Sequence[str]) -> str:
    repeated = [words[number % len(words)] for number in range(units)]
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(repeated))
    places = sorted(len(sentences) * depth // 100 for depth in rng.sample(DEPTHS, len(needles)))
    parts: list[str] = []
    for start, end, needle in zip([0, *places], places, needles, strict=False):
        parts += [" ".join(sentences[start:end]), needle]
    parts.append(" ".join(sentences[places[-1] :]))
    return " ".join(parts)


def _value(kind: str, rng: random.Random) -> str:
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    if kind == "words":
        return rng.choice(key_words())
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
