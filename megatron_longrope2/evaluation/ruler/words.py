"""The word lists of RULER's keys and lists, from the package `wonderwords`, in the public generator's
order."""

import random
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import accumulate
from typing import overload

from megatron_longrope2.errors import InputError


def _words(name: str) -> list[str]:
    try:
        text = (resources.files("wonderwords.assets") / f"{name}list.txt").read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        raise InputError(
            "ruler: the word lists are missing; pip install wonderwords (the `eval` extra)"
        ) from error
    return [line.strip() for line in text.splitlines()]


class _Pairs(Sequence[str]):
    """All "adjective-noun", sorted, without making the six million strings.

    Those of one adjective are neighbours, except where one begins another ("blue", "blue-eyed"): such a
    group is sorted as strings.
    """

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        self._nouns = sorted(set(nouns))
        self._groups: list[list[str]] = []
        for beginning in sorted({f"{adjective}-" for adjective in adjectives}):
            if self._groups and beginning.startswith(self._groups[-1][0]):
                self._groups[-1].append(beginning)
            else:
                self._groups.append([beginning])
        self._ends = list(accumulate(len(group) * len(self._nouns) for group in self._groups))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = bisect_right(self._ends, index)
        group, start = self._groups[number], self._ends[number - 1] if number else 0
        if len(group) == 1:
            return group[0] + self._nouns[index - start]
        return sorted(beginning + noun for beginning in group for noun in self._nouns)[index - start]


@cache
def key_words() -> Sequence[str]:
    """The adjective-noun keys of needles.

    Raises:
        InputError: `wonderwords` is not installed.
    """
    return _Pairs(_words("adjective"), _words("noun"))


def list_words() -> tuple[list[str], random.Random]:
    """The words of common words extraction, shuffled, and the random stream that shuffled them.

    Raises:
        InputError: `wonderwords` is not installed.
    """
    words = sorted({word for name in ("noun", "adjective", "verb") for word in _words(name)})
    stream = random.Random(42)
    stream.shuffle(words)
    return words, stream
