"""Needle samples: real book text with a hidden fact and a question about it, exactly T tokens long.

The search's objective and the needle evaluation score only the answer tokens of these samples (LongRoPE2,
arXiv 2502.20082, section 3.2). The wording is short by default, so that a window of 96 tokens still holds
text.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched, product

import numpy as np
import torch
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.data.documents import Document
from megatron_longrope2.data.settings import Keys
from megatron_longrope2.data.tokenizer import leading_bos
from megatron_longrope2.data.wording import SHORT, Wording
from megatron_longrope2.errors import InputError

# A needle moves at most this many tokens from the requested depth to the start of a word.
WORD_SEARCH = 16

HELD_OUT_SHARE = 0.2

MOST_BOOKS = 64
MOST_TOKENS = 1 << 21
FEW_BOOKS = 10

# Books that are tokenized at once, each by a thread.
_THREADS = 4

# Common words, so that a small vocabulary needs few tokens for them. "island" is left out: a tiny model took
# its "is" for the one before the number.
_ADJECTIVES = """
ancient bold brave bright broad calm clean clear cold deep early fair gentle golden great green happy heavy
high holy little long mighty new noble old plain proud quiet red rich silent silver small strong sweet tall
warm white wise
"""
_NOUNS = """
altar arrow basket boat bread bridge candle castle cedar cloud crown desert door eagle field fire forest
fountain garden gate harp hill horse house lamp lion meadow mountain ocean path pillar river rock ship star
stone sword tower tree vine
"""
ADJECTIVES = _ADJECTIVES.split()
NOUNS = _NOUNS.split()


def key_pool(keys: Keys, joint: str = " ") -> list[str]:
    """The adjective-noun keys of one split; 20 % of all are held out, always the same ones."""
    every = [f"{adjective}{joint}{noun}" for adjective, noun in product(ADJECTIVES, NOUNS)]
    by_hash = sorted(every, key=lambda key: hashlib.sha256(key.encode()).digest())
    count = round(HELD_OUT_SHARE * len(by_hash))
    return {"held_out": by_hash[:count], "train": by_hash[count:], "all": by_hash}[keys]


def books_for(samples: int, length: int) -> int:
    """The number of books that samples of `length` tokens go round: one each, but not more than take seconds
    to tokenize; the 10 of LongRoPE2 are always allowed.
    """
    return min(samples, MOST_BOOKS, max(FEW_BOOKS, MOST_TOKENS // length))


@dataclass(frozen=True, eq=False)
class NeedleSample:
    """One sample of T tokens.

    Attributes:
        tokens: int64 [T].
        answer_mask: bool [T]; True where the token itself belongs to an answer, so that it is predicted from
            the token before it.
        key: what the hidden number belongs to.
        value: the hidden number, which is asked for.
        book: name of the book of the body.
    """

    tokens: torch.Tensor
    answer_mask: torch.Tensor
    key: str
    value: str
    book: str


@dataclass(frozen=True)
class _Tokens:
    """A tokenized book: `ids` [n] and where, in tokens, its words and lines start; all int32."""

    name: str
    ids: np.ndarray
    word_starts: np.ndarray
    line_starts: np.ndarray


class NeedleSampler:
    """Draws needle samples from tokenized books.

    A sample is a pure function of (seed, index, length, depth) and the other arguments. Its key, number and
    book come from (seed, index) alone, so that samples of one index are paired over depths. Consecutive
    indices take different books, until every book that is long enough has had its turn.

    Args:
        tokenizer: a fast tokenizer; a BOS is put in front only if the tokenizer itself would put one.
        books: the texts, at least one; they are read one after another.
        seed: seed of places, keys and numbers.
        keys: which keys to hide numbers for, see `key_pool`.
        wording: the sentences around the text.
        lengths: of the samples that will be drawn, tokens. Books that are too short for all of them are left
            out, some of them by their characters. 0: of any length.
        most_books: reading stops when so many books are long enough for the longest length. None: never.

    Raises:
        InputError: the tokenizer cannot tell where its tokens come from.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        books: Iterable[Document],
        *,
        seed: int = 0,
        keys: Keys = "all",
        wording: Wording = SHORT,
        lengths: Sequence[int] = (0,),
        most_books: int | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError("tokenizer: has no character offsets; use a fast one (tokenizer.json)")
        self.tokenizer = tokenizer
        self.seed = seed
        self.wording = wording
        self._keys = key_pool(keys, wording.joint)
        self._head = [*leading_bos(tokenizer), *self._encode(wording.opening)[0]]
        self._longest = 0
        self._books = self._tokenized(books, min(lengths), max(lengths), most_books)

    def sample(self, index: int, length: int, depth: float) -> NeedleSample:
        """Draw sample number `index` of exactly `length` tokens with its needle at `depth`.

        Depth is a fraction of the body (0: right after the opening line, 1: right before the question),
        moved to the next start of a word.

        Raises:
            InputError: depth is not in [0, 1], or the template or the books do not fit the length.
        """
        if not 0 <= depth <= 1:
            raise InputError(f"depth: {depth} is not a fraction of the text; use 0 to 1")
        rng = random.Random(f"sample/{self.seed}/{index}")
        (key,) = rng.sample(self._keys, 1)
        value = str(rng.randrange(10**6, 10**7))
        line = self._encode(self.wording.needle.format(key=key, value=value))[0]
        tail, answer = self._question(key, value)
        room = length - len(self._head) - len(line) - len(tail)
        if room < 1:
            raise InputError(
                f"length: {length} tokens leave no room for text; needle and question take {length - room}: "
                "use a longer one"
            )
        book, start = self._choose_body(index, room, rng)
        body = book.ids[start : start + room].tolist()
        place = _word_near(book, start, room, depth)
        tokens = torch.tensor([*self._head, *body[:place], *line, *body[place:], *tail], dtype=torch.int64)
        mask = torch.zeros(length, dtype=torch.bool)
        mask[length - len(tail) :] = torch.from_numpy(answer)
        return NeedleSample(tokens, mask, key, value, book.name)

    def samples(
        self, count: int, length: int | Sequence[int], depths: Sequence[float]
    ) -> Iterator[NeedleSample]:
        """Draw samples 0 to count - 1, going round the depths; each round takes the next length."""
        lengths = [length] if isinstance(length, int) else length
        for index in range(count):
            round_, at = divmod(index, len(depths))
            yield self.sample(index, lengths[round_ % len(lengths)], depths[at])

    def _encode(self, text: str) -> tuple[list[int], np.ndarray]:
        """Token ids of plain text (no special token, even where the text spells one) and offsets [n, 2]."""
        (encoding,) = self._encodings([text])
        return encoding.ids, np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)

    def _encodings(self, texts: Sequence[str]) -> list[Encoding]:
        if not texts:
            return []
        # The encodings have everything; lists of it would take several times as much memory.
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, **options).encodings

    def _tokenized(
        self, books: Iterable[Document], shortest: int, longest: int, most_books: int | None
    ) -> list[_Tokens]:
        """The books of at least `shortest` tokens, up to the one that completes `most_books` of `longest`."""
        kept: list[_Tokens] = []
        enough = 0
        fewest = 0.0  # characters a token, of all books so far
        for batch in batched(books, _THREADS):
            # Those with far too few characters need not be tokenized.
            long = [book for book in batch if len(book.text) >= 0.8 * fewest * shortest]
            for book, encoding in zip(long, self._encodings([book.text for book in long]), strict=True):
                tokens = self._book(book, encoding)
                size = len(tokens.ids)
                self._longest = max(self._longest, size)
                density = len(book.text) / max(1, size)
                fewest = min(fewest or density, density)
                if size >= shortest:
                    kept.append(tokens)
                    enough += size >= longest
                if enough == most_books:
                    return kept
        return kept

    def _book(self, book: Document, encoding: Encoding) -> _Tokens:
        offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        starts = np.minimum(offsets[:, 0], max(len(book.text) - 1, 0))
        chars = np.frombuffer(f"\n{book.text}".encode("utf-32-le"), dtype=np.uint32)
        before, at = chars[starts], chars[starts + 1]
        # The pieces of one character share its start: only the first of them may begin something.
        fresh = np.diff(starts, prepend=-1) != 0
        words = fresh & (np.isin(before, _SPACES) | np.isin(at, _SPACES))
        lines = fresh & (before == _NEWLINE) & (at != _NEWLINE)
        lines[:1] = True
        ids, words, lines = (
            np.array(values, dtype=np.int32)
            for values in (encoding.ids, np.flatnonzero(words), np.flatnonzero(lines))
        )
        return _Tokens(book.name, ids, words, lines)

    def _question(self, key: str, value: str) -> tuple[list[int], np.ndarray]:
        """Ids of the question and the answer that ends the text, and which of them are the answer's: bool."""
        asked = self.wording.question.format(key=key)
        ids, offsets = self._encode(asked + value)
        # A token may hold more than the value (its space) or less (a digit, a byte): ask the offsets.
        return ids, (offsets[:, 0] < len(asked) + len(value)) & (offsets[:, 1] > len(asked))

    def _choose_body(self, index: int, room: int, rng: random.Random) -> tuple[_Tokens, int]:
        """The book of sample `index` and the token where its body of `room` tokens starts, at a line."""
        enough = [book for book in self._books if len(book.ids) >= room]
        if not enough:
            raise InputError(
                f"books: the longest has {self._longest} tokens, {room} are needed; add longer ones, or "
                "write several into one .txt file"
            )
        book = enough[index % len(enough)]
        starts = book.line_starts[book.line_starts <= len(book.ids) - room]
        return book, int(rng.choice(starts))


_NEWLINE = ord("\n")
_SPACES = np.array([ord(char) for char in " \n\t\r\u00a0\u3000"], dtype=np.uint32)


def _word_near(book: _Tokens, start: int, room: int, depth: float) -> int:
    """Offset in [0, room] of the word start nearest to `depth` of the body, else that place itself."""
    place = round(depth * room)
    if place in (0, room):
        return place
    low, high = np.searchsorted(book.word_starts, (start, start + room))
    words = book.word_starts[low:high] - start
    if len(words) == 0:
        return place
    near = int(words[np.argmin(np.abs(words - place))])
    return near if abs(near - place) <= WORD_SEARCH else place
