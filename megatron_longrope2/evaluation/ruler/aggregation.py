"""RULER's aggregation tasks: the most common words of a list, and the most frequent of a coded text."""

import math
import random
import string
from collections.abc import Callable, Iterator

import numpy as np

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.ruler.words import list_words

COMMON_NEW_TOKENS = 120
COMMON_WORDS = 10
COMMON_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the "
    "ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
COMMON_PREFIX = " Answer: The top 10 words that appear most often in the list are:"

FREQUENT_NEW_TOKENS = 50
FREQUENT_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently "
    "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots "
    "'....'. What "
    "are the three most frequently appeared words in the above coded text?"
)
FREQUENT_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
LETTERS = 6
ZETA_2 = math.pi**2 / 6
"""The sum of k^-2: the frequencies of the coded words follow a zeta law with exponent 2."""


def common_samples(
    count_tokens: Callable[[str], int], length: int, rng: random.Random
) -> Iterator[tuple[str, str, list[str]]]:
    """Endless samples (text, beginning of the answer, ten words) of at most `length` tokens with the answer's
    120.

    Raises:
        InputError: no sample fits the length.
    """
    words, shuffler = list_words()

    def numbered(items: list[str]) -> str:
        return " ".join(f"{number}. {item}" for number, item in enumerate(items, start=1))

    def listing(different: int, common_repeats: int, other_repeats: int) -> tuple[str, list[str]]:
        chosen = rng.sample(words, different)
        common = chosen[:COMMON_WORDS]
        items = common * common_repeats + chosen[COMMON_WORDS:] * other_repeats
        shuffler.shuffle(items)
        return COMMON_TEMPLATE.format(context=numbered(items)) + COMMON_PREFIX, common

    def draw(different: int) -> tuple[str, str, list[str]]:
        # The example is drawn and measured, as in the public generator, although the prompt does not show it.
        example, answer = listing(20, 3, 1) if length < 4096 else listing(40, 10, 3)
        text, common = listing(different, 6, 1) if length < 4096 else listing(different, 30, 3)
        return example + numbered(answer), text, common

    different, total = COMMON_WORDS, 0
    while total + COMMON_NEW_TOKENS < length:
        example, text, common = draw(different)
        total = count_tokens(f"{example}\n{text} {numbered(common)}")
        if total + COMMON_NEW_TOKENS > length:
            different -= 10
            break
        different += 10
        if different > len(words):
            different = len(words)
            break
    while True:
        for used in range(different, 0, -10):
            _, text, common = draw(used)
            if count_tokens(text) + COMMON_NEW_TOKENS <= length:
                yield text.removesuffix(COMMON_PREFIX).strip(), COMMON_PREFIX.strip(), common
                break
        else:
            raise InputError(f"ruler: {length} tokens are too few for common words; use a longer length")


def frequent_samples(
    count_tokens: Callable[[str], int], length: int, rng: random.Random
) -> Iterator[tuple[str, str, list[str]]]:
    """Endless samples (text, beginning of the answer, three words) whose prompt has at most `length` tokens.

    Raises:
        InputError: no sample fits the length.
    """
    kinds, step = length // 50, length // 32
    if kinds < 4:
        raise InputError(f"ruler: {length} tokens are too few for frequent words; use 200 or more")

    def vocabulary() -> list[str]:
        coded = ["".join(rng.choices(string.ascii_lowercase, k=LETTERS)) for _ in range(kinds)]
        while len(set(coded)) < kinds:
            coded.append("".join(rng.choices(string.ascii_lowercase, k=LETTERS)))
        coded = sorted(set(coded))
        random.Random(42).shuffle(coded)
        return ["...", *coded[1:]]

    def text_of(coded: list[str], words: int) -> str:
        counts = words * np.arange(1, len(coded) + 1) ** -2.0 / ZETA_2
        items = [word for word, count in zip(coded, counts.astype(int), strict=True) for _ in range(count)]
        random.Random(42).shuffle(items)
        return FREQUENT_TEMPLATE.format(context=" ".join(items)) + FREQUENT_PREFIX

    coded, words = vocabulary(), length // LETTERS
    while count_tokens(text_of(coded, words)) < length:
        words += step
    words -= step
    while True:
        coded, used = vocabulary(), words
        while count_tokens(text := text_of(coded, used)) > length:
            used -= step
            if used <= 0:
                raise InputError(
                    f"ruler: {length} tokens are too few for frequent words; use a longer length"
                )
        yield text.removesuffix(FREQUENT_PREFIX).strip(), FREQUENT_PREFIX.strip(), coded[1:4]
