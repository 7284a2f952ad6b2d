"""What a sample of a text says of all of it: tokens by document length, before anything is tokenized."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np

from megatron_longrope2.data.documents import Document, Slice, read_slice, slices
from megatron_longrope2.data.settings import Bucket
from megatron_longrope2.data.tokenizer import Encode
from megatron_longrope2.errors import InputError
from megatron_longrope2.statistics import mean_interval

# A text of more bytes is sampled, in stretches that are spread evenly over it. A .jsonl is entered anywhere.
# Of a row group or a compressed file there is the beginning, which is longer, because its bytes are not known
# exactly.
SAMPLE_BYTES = 256 << 20
STRETCH_BYTES = 256 << 10
BEGINNING_BYTES = 4 << 20

# Pieces of documents that are tokenized, drawn by their share of the text.
PIECES = 600
PIECE_CHARACTERS = 8192

# Share of the pieces that have fewer characters a token than `Survey.range` says, and share that have more.
TAIL = 0.05

# Of documents that the sample has none of, the text has (with 95 % confidence) at most what would have given
# the sample three.
_UNSEEN = 3

# What the middle of a document may leave unsaid of the rest.
_PIECE_ERROR = 0.01

# Fewer pieces than this say nothing of a kind of documents' characters a token: what all pieces say is taken.
_FEW_PIECES = 30


@dataclass(frozen=True)
class Tokens:
    """A number of tokens that may not be known exactly: at least, most likely, at most (perhaps infinite)."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True)
class Stretch:
    """A part of the text that was read.

    Attributes:
        weight: bytes of the text that it stands for.
        size: its own bytes.
        characters: of each document in it, int64 [documents].
    """

    weight: float
    size: int
    characters: np.ndarray


@dataclass(frozen=True)
class Survey:
    """A sample of a text.

    Attributes:
        stretches: what was read of it.
        complete: whether that is everything.
        length: tokens from which on it matters how long a document is.
        characters: of the documents of the pieces that were tokenized, int64 [pieces].
        tokens_per_character: of the pieces, float64 [pieces].
    """

    stretches: Sequence[Stretch]
    complete: bool
    length: int
    characters: np.ndarray
    tokens_per_character: np.ndarray

    @property
    def range(self) -> tuple[float, float]:
        """Characters a token of documents of about `length` tokens or more, without both ends' `TAIL`."""
        chosen = self.characters > 0.5 * self.length / self.tokens_per_character.mean()
        pieces = self.tokens_per_character[chosen if chosen.sum() >= _FEW_PIECES else slice(None)]
        low, high = np.quantile(1 / pieces, [TAIL, 1 - TAIL]).tolist()
        return low, high

    def tokens(self, bucket: Bucket) -> Tokens:
        """Tokens of the documents that belong into a bucket.

        The interval is wide enough for the chance of the sample and of its pieces (95 % each), and for
        documents whose characters leave open on which side of the bucket's ends they are.
        """
        low, high = self.range
        mean = 1 / float(self.tokens_per_character.mean())
        of_bucket = self.tokens_per_character[_between(self.characters, bucket, mean, mean)]
        if len(of_bucket) < _FEW_PIECES:
            density, densities = 1 / mean, (1 / high, 1 / low)
        else:
            found = mean_interval(of_bucket.tolist())
            half = found.ci95 + _PIECE_ERROR * found.mean
            density, densities = found.mean, (found.mean - half, found.mean + half)
        likely, _, _ = self._total(bucket, mean, mean, density)
        least, _, below = self._total(bucket, high, low, densities[0])
        most, documents, above = self._total(bucket, low, high, densities[1])
        if not documents and not self.complete:
            longest = bucket.at_most or 2 * bucket.longer_than
            read = sum(stretch.size for stretch in self.stretches)
            most = _UNSEEN * longest * sum(stretch.weight for stretch in self.stretches) / read
        return Tokens(max(0.0, least - below), likely, most + above)

    def _total(
        self, bucket: Bucket, at_start: float, at_end: float, density: float
    ) -> tuple[float, int, float]:
        """Tokens in the text of a bucket's documents, how many the sample has, and half of their interval.

        Args:
            at_start, at_end: characters a token by which the bucket's ends are reckoned.
            density: tokens a character of the documents.
        """
        chosen = [s.characters[_between(s.characters, bucket, at_start, at_end)] for s in self.stretches]
        weights = np.array([stretch.weight for stretch in self.stretches])
        # Each document has an EOS, too.
        tokens = np.array([part.sum() * density + len(part) for part in chosen])
        totals = weights * tokens / [stretch.size for stretch in self.stretches]
        half = 0.0
        if not self.complete:
            # The stretches' weights differ where files are read from their beginnings.
            residuals = totals - weights * totals.sum() / weights.sum()
            half = len(weights) * mean_interval(residuals.tolist()).ci95
        return float(totals.sum()), sum(map(len, chosen)), half


def survey(path: str | Path, text_field: str, encode: Encode, length: int) -> Survey:
    """Sample the documents of a file or folder: a quarter of a gigabyte of them, always the same.

    Args:
        length: tokens at which the shortest bucket ends.

    Raises:
        InputError: as `iter_documents`, for what is read; or that has no text.
    """
    rng = random.Random("survey")
    parts = slices(path)
    size = sum(part.size for part in parts)
    complete = size <= SAMPLE_BYTES
    drawn = [(part, float(part.size)) for part in parts]
    if not complete:
        entered = [part for part in parts if part.path.endswith((".jsonl", ".txt"))]
        begun = [part for part in parts if not part.path.endswith((".jsonl", ".txt"))]
        step = size / SAMPLE_BYTES
        drawn = [*_draw(entered, step * STRETCH_BYTES, rng), *_draw(begun, step * BEGINNING_BYTES, rng)]
    stretches: list[Stretch] = []
    pieces: list[str] = []
    lengths: list[int] = []
    for part, weight in drawn:
        documents, read = _read(part, text_field, inf if complete else BEGINNING_BYTES)
        characters = [len(document.text) for document in documents]
        stretches.append(Stretch(weight, read, np.array(characters, dtype=np.int64)))
        if documents:
            # As many as is this stretch's share of the text; a byte is about a character.
            share = weight / size * sum(characters) / read
            chosen = rng.choices(documents, characters, k=int(PIECES * share + rng.random()))
            pieces += [_middle(document.text) for document in chosen]
            lengths += [len(document.text) for document in chosen]
    if not pieces:
        raise InputError(f"{path}: the documents that were read have no text; give files with some")
    different = list(dict.fromkeys(pieces))
    sizes = {piece: max(1, ids.size) for piece, ids in zip(different, encode(different), strict=True)}
    tokens = np.array([sizes[piece] / len(piece) for piece in pieces])
    return Survey(stretches, complete, length, np.array(lengths), tokens)


def _between(characters: np.ndarray, bucket: Bucket, at_start: float, at_end: float) -> np.ndarray:
    """Which documents of so many characters are between a bucket's ends, by the given characters a token."""
    end = inf if bucket.at_most is None else bucket.at_most * at_end
    return (characters > bucket.longer_than * at_start) & (characters <= end)


def _draw(parts: Sequence[Slice], step: float, rng: random.Random) -> Iterator[tuple[Slice, float]]:
    """Parts at places that are `step` bytes apart, and the bytes that each stands for."""
    place, start = rng.random() * step, 0
    for part in parts:
        places = np.arange(place, start + part.size, step)
        if part.path.endswith(".jsonl"):
            for offset in (places - start).astype(int).tolist():
                begin = part.start + min(offset, max(0, part.size - STRETCH_BYTES))
                stretch = min(STRETCH_BYTES, part.size)
                yield replace(part, start=begin, stop=begin + stretch, size=stretch), step
        elif len(places):
            yield part, step * len(places)
        place += step * len(places)
        start += part.size


def _read(part: Slice, text_field: str, limit: float) -> tuple[list[Document], int]:
    """The first documents of a slice, until they have `limit` characters; bytes of the slice up to there."""
    documents: list[Document] = []
    characters = 0
    for document in read_slice(part, text_field):
        documents.append(document)
        characters += len(document.text)
        if characters >= limit:
            return documents, min(part.size, document.read)
    return documents, part.size


def _middle(text: str) -> str:
    start = max(0, (len(text) - PIECE_CHARACTERS) // 2)
    return text[start : start + PIECE_CHARACTERS]
