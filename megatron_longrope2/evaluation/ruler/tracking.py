"""RULER's variable tracking: chains of assignments hidden in noise, with one solved example before them."""

import random
import string
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.ruler.niah import NOISE

NEW_TOKENS = 30
HOPS = 4
EXAMPLE_LENGTH = 500
TASK = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
QUESTION = "Question: Find all variables that are assigned the value {value} in the text above."
# The misspelling is the benchmark's.
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are "
    "assgined "
    "the value {value}, they are: "
)


def tracking_samples(
    count_tokens: Callable[[str], int], length: int, rng: random.Random, numbers: np.random.RandomState
) -> Iterator[tuple[str, str, list[str]]]:
    """Endless samples (text, beginning of the answer, variables) of at most `length` tokens with the answer's
    30.

    Raises:
        InputError: no sample fits the length.
    """
    make = _Maker(count_tokens, rng, numbers)
    example_text, example_prefix, example_answer = make.sample(
        EXAMPLE_LENGTH, 5, make.noises(EXAMPLE_LENGTH, 5, 3), 3
    )
    example = f"{example_text}{example_prefix} {' '.join(example_answer)}\n\n"
    extra = count_tokens(example)
    noises = make.noises(length, 10, 5, extra)
    while True:
        text, prefix, answer = make.sample(length, 10, noises, 5, extra)
        yield f"{_renamed(example, rng)}\n\n{text}", prefix.strip(), answer


class _Maker:
    """Draws samples in the public generator's order; `letters` is the length of a variable's name."""

    def __init__(
        self, count_tokens: Callable[[str], int], rng: random.Random, numbers: np.random.RandomState
    ) -> None:
        self.count_tokens = count_tokens
        self.rng = rng
        self.numbers = numbers

    def noises(self, length: int, step: int, letters: int, extra: int = 0) -> int:
        """Noise sentences of the largest step that fits, judged by one sample each."""
        noises, total = step, 0
        while total + NEW_TOKENS + extra < length:
            text, prefix, answer = self._draw(noises, letters)
            total = self.count_tokens(f"{text}{prefix} {answer}")
            if total + NEW_TOKENS + extra > length:
                return noises - step
            noises += step
        return noises

    def sample(
        self, length: int, step: int, noises: int, letters: int, extra: int = 0
    ) -> tuple[str, str, list[str]]:
        """One sample with `noises` sentences, or fewer if it does not fit."""
        while noises > 0:
            text, prefix, answer = self._draw(noises, letters)
            if self.count_tokens(text + prefix) + NEW_TOKENS + extra <= length:
                return text, prefix, answer
            noises -= step
        raise InputError(f"ruler: {length} tokens are too few for variable tracking; use a longer length")

    def _draw(self, noises: int, letters: int) -> tuple[str, str, list[str]]:
        names = [self._name(letters) for _ in range(HOPS + 1)]
        while len(set(names)) < HOPS + 1:
            names.append(self._name(letters))
        names = names[: HOPS + 1]
        chain = [f"VAR {names[0]} = {self.numbers.randint(10000, 99999)}"]
        chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
        sentences = [f"{NOISE}\n"] * noises
        if len(sentences) <= len(chain):
            pieces = [piece for sentence in sentences for piece in sentence.split(".")]
            sentences = [f"{piece}." if piece.strip() else piece for piece in pieces]
        places = sorted(self.rng.sample(range(len(sentences)), len(chain)))
        for number, (place, line) in enumerate(zip(places, chain, strict=True)):
            sentences.insert(place + number, line)
        context = " ".join(sentences).replace(". \n", ".\n")
        value = chain[0].split("=")[-1].strip()
        text = TASK.format(context=context) + QUESTION.format(value=value)
        return text, PREFIX.format(count=HOPS + 1, value=value), names

    def _name(self, letters: int) -> str:
        return "".join(self.rng.choices(string.ascii_uppercase, k=letters))


def _renamed(example: str, rng: random.Random) -> str:
    """The solved example with new names for the variables of its answer."""
    marker = PREFIX[-10:]
    answer = example[example.index(marker) + len(marker) :].split()
    for name in answer:
        example = example.replace(name, "".join(rng.choices(string.ascii_uppercase, k=len(name))))
    return example
