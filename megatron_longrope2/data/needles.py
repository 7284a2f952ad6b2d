"""Needle samples: real book text with a hidden fact and a question about it, exactly T tokens long.

The search's objective and the needle evaluation both score the answer tokens of these samples only
(LongRoPE2, arXiv 2502.20082, section 3.2). One wording is used everywhere; it is short, so that a window of
96 tokens still holds text.
"""

import hashlib
import json
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.data.books import Book
from megatron_longrope2.data.needle_keys import ADJECTIVES, NOUNS, Keys, key_pool
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import replacing

FORMAT = "longrope2-needles/1"
# A needle moves at most this many tokens from the asked depth to start at a word.
WORD_SEARCH = 16

OPENING = "A magic {kind} is hidden in this text.\n"
NEEDLE = "\nThe magic {kind} for {key} is: {value}.\n"
QUESTION = "\nWhat is the magic {kind} for {key}? The magic {kind} for {key} is: "

ValueKind = Literal["number", "word", "uuid"]


@dataclass(frozen=True)
class Needle:
    """A hidden fact: the value of a key, stated at `depth` (0: start of the body, 1: its end)."""

    key: str
    value: str
    depth: float


@dataclass(frozen=True, eq=False)
class NeedleSample:
    """One sample of T tokens.

    Attributes:
        tokens: int64 [T].
        answer_mask: bool [T]; True where the token itself belongs to an answer's value, so it is predicted
            from the token before it.
        key, value, depth: of the first needle, whose question comes first.
        book: name of the book (or books) of the body.
        more: the other needles, in the order of their questions.
    """

    tokens: torch.Tensor
    answer_mask: torch.Tensor
    key: str
    value: str
    depth: float
    book: str
    more: tuple[Needle, ...] = ()


@dataclass(frozen=True)
class _Tokens:
    """A tokenized book: `ids` [n] and where, in tokens, its words and lines start."""

    name: str
    ids: np.ndarray
    word_starts: np.ndarray
    line_starts: np.ndarray


class NeedleSampler:
    """Draws needle samples from tokenized books.

    A sample is a pure function of (seed, index, length, depth) and the settings. Its key, value and book come
    from (seed, index) alone, so that samples of one index are paired over depths. Consecutive indices take
    different books, until every book that is long enough had its turn.

    Args:
        tokenizer: a fast tokenizer; a BOS is put in front only if the tokenizer itself would put one.
        books: the texts.
        seed: >= 0.
        keys: which keys to hide values for, see `key_pool`.
        value_kind: "number" (7 digits), "word" (adjective-noun) or "uuid" (version 4).
        needles_per_document: needles a sample; needle k lies at depth + k / needles_per_document, modulo 1.
        join_books: let a body run on into the next books where one book is too short.

    Raises:
        InputError: a setting is out of its range, or the tokenizer cannot tell where its tokens come from.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        books: Sequence[Book],
        *,
        seed: int = 0,
        keys: Keys = "all",
        value_kind: ValueKind = "number",
        needles_per_document: int = 1,
        join_books: bool = False,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError("tokenizer: has no character offsets; use a fast one (tokenizer.json)")
        if not books:
            raise InputError("books: there are none; give at least one text")
        if seed < 0:
            raise InputError(f"seed: {seed} is negative; use 0 or more")
        if value_kind not in ("number", "word", "uuid"):
            raise InputError(f"value_kind: {value_kind!r} is unknown; use number, word or uuid")
        pool = key_pool(keys)
        if not 1 <= needles_per_document <= len(pool):
            raise InputError(f"needles_per_document: {needles_per_document} is not in 1..{len(pool)}")
        self.tokenizer = tokenizer
        self.seed = seed
        self.keys = keys
        self.value_kind = value_kind
        self.needles_per_document = needles_per_document
        self.join_books = join_books
        self._pool = pool
        shuffled = random.Random(f"books/{seed}").sample(list(books), len(books))
        self._books = [self._tokenize(book) for book in shuffled]

    @property
    def settings(self) -> dict[str, Any]:
        """What, besides books and tokenizer, decides the samples; JSON-ready."""
        names = ("seed", "keys", "value_kind", "needles_per_document", "join_books")
        return {name: getattr(self, name) for name in names}

    def sample(self, index: int, length: int, depth: float) -> NeedleSample:
        """Draw sample number `index` of exactly `length` tokens with its first needle at `depth`.

        Depth is a fraction of the body (0: right after the opening line, 1: right before the question),
        moved to the next start of a word.

        Raises:
            InputError: depth is not in [0, 1], or the template or the books do not fit the length.
        """
        if not 0 <= depth <= 1:
            raise InputError(f"depth: {depth} is not a fraction of the text; use 0 to 1")
        rng = random.Random(f"sample/{self.seed}/{index}")
        needles = self._draw_needles(rng, depth)
        head = [*self._bos, *self._encode(OPENING.format(kind=self.value_kind))[0]]
        lines = [self._encode(NEEDLE.format(kind=self.value_kind, **asdict(n)))[0] for n in needles]
        tail, tail_mask = self._questions(needles)
        room = length - len(head) - sum(map(len, lines)) - len(tail)
        if room < 1:
            raise InputError(
                f"length: {length} tokens leave no room for text; needles and questions "
                f"take {length - room}: use a longer one or fewer needles"
            )
        book, start = self._choose_body(index, room, rng)
        body = book.ids[start : start + room].tolist()
        places = [_word_near(book, start, room, needle.depth) for needle in needles]
        for place, line in sorted(zip(places, lines, strict=True), key=lambda pair: pair[0], reverse=True):
            body[place:place] = line
        mask = [False] * (length - len(tail)) + tail_mask
        first, *more = needles
        return NeedleSample(
            torch.tensor(head + body + tail, dtype=torch.int64),
            torch.tensor(mask, dtype=torch.bool),
            first.key,
            first.value,
            depth,
            book.name,
            tuple(more),
        )

    def samples(
        self, count: int, length: int | Sequence[int], depths: Sequence[float]
    ) -> Iterator[NeedleSample]:
        """Draw samples 0..count-1, going round the depths; of several lengths, the next with each round."""
        if not depths:
            raise InputError("depths: there are none; give at least one in 0 to 1")
        lengths = [length] if isinstance(length, int) else length
        for index in range(count):
            round_, at = divmod(index, len(depths))
            yield self.sample(index, lengths[round_ % len(lengths)], depths[at])

    @cached_property
    def _bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

    def _encode(self, text: str) -> tuple[list[int], np.ndarray]:
        """Token ids of plain text (no special token, even where the text spells one) and offsets [n, 2]."""
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        return encoded["input_ids"], np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def _tokenize(self, book: Book) -> _Tokens:
        ids, offsets = self._encode(book.text)
        starts = np.minimum(offsets[:, 0], max(len(book.text) - 1, 0))
        chars = np.fromiter(map(ord, "\n" + book.text), dtype=np.uint32)
        before, at = chars[starts], chars[starts + 1]
        # The pieces of one character share its start: only the first of them may begin something.
        fresh = np.diff(starts, prepend=-1) != 0
        words = fresh & (np.isin(before, _SPACES) | np.isin(at, _SPACES))
        lines = fresh & (before == _NEWLINE) & (at != _NEWLINE)
        lines[:1] = True
        return _Tokens(
            book.name, np.asarray(ids, dtype=np.int64), np.flatnonzero(words), np.flatnonzero(lines)
        )

    def _draw_needles(self, rng: random.Random, depth: float) -> list[Needle]:
        count = self.needles_per_document
        keys = rng.sample(self._pool, count)
        depths = [depth] + [(depth + k / count) % 1 for k in range(1, count)]
        return [Needle(key, self._draw_value(rng), at) for key, at in zip(keys, depths, strict=True)]

    def _draw_value(self, rng: random.Random) -> str:
        if self.value_kind == "number":
            return str(rng.randrange(10**6, 10**7))
        if self.value_kind == "word":
            return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    def _questions(self, needles: Sequence[Needle]) -> tuple[list[int], list[bool]]:
        """Ids and answer mask of the answered questions; the last answer ends the text."""
        ids: list[int] = []
        mask: list[bool] = []
        for needle in needles:
            asked = QUESTION.format(kind=self.value_kind, key=needle.key)
            end = len(asked) + len(needle.value)
            part, offsets = self._encode(asked + needle.value + ("" if needle is needles[-1] else "."))
            # A token may hold more than the value (its space) or less (a digit, a byte): ask the offsets.
            answer = (offsets[:, 0] < end) & (offsets[:, 1] > len(asked))
            ids += part
            mask += answer.tolist()
        if not mask[-1]:
            raise InputError(
                "tokenizer: its offsets do not reach the end of the answer; use another tokenizer"
            )
        return ids, mask

    def _choose_body(self, index: int, room: int, rng: random.Random) -> tuple[_Tokens, int]:
        """The book of sample `index` and the token where its body of `room` tokens starts, at a line."""
        books = [self._join(index % len(self._books), room)] if self.join_books else self._books
        enough = [book for book in books if len(book.ids) >= room]
        if not enough:
            longest = max(len(book.ids) for book in books)
            mend = "add books" if self.join_books else "add longer ones or join them"
            raise InputError(f"books: the longest has {longest} tokens, {room} are needed; {mend}")
        book = enough[index % len(enough)]
        starts = book.line_starts[book.line_starts <= len(book.ids) - room]
        return book, int(rng.choice(starts))

    def _join(self, first: int, room: int) -> _Tokens:
        """Book number `first`, with the following ones until any start in it has `room` tokens after it."""
        parts: list[_Tokens] = []
        ends = [0]
        for book in self._books[first:] + self._books[:first]:
            if parts and ends[-1] >= len(parts[0].ids) + room:
                break
            parts.append(book)
            ends.append(ends[-1] + len(book.ids))
        return _Tokens(
            " + ".join(part.name for part in parts),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.word_starts + end for part, end in zip(parts, ends, strict=False)]),
            parts[0].line_starts,
        )


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


def vocabulary_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of a tokenizer's vocabulary: the same for tokenizers that give ids the same meaning."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def save_needles(
    path: str | Path,
    samples: Sequence[NeedleSample],
    tokenizer: PreTrainedTokenizerFast,
    settings: Mapping[str, Any],
) -> None:
    """Write samples of one length to a safetensors file with a JSON manifest in its metadata.

    Tensors: `tokens` int64 [samples, T], `answer_mask` bool [samples, T]. Manifest: `format`, `length`,
    `vocabulary` (hash), `settings`, and `samples` (key, value, depth, book, more).

    Raises:
        InputError: there are no samples, they differ in length, or the file cannot be written.
    """
    if not samples:
        raise InputError(f"{path}: no samples to write; draw at least one")
    lengths = {len(sample.tokens) for sample in samples}
    if len(lengths) > 1:
        raise InputError(f"{path}: samples of {sorted(lengths)} tokens; write one file a length")
    manifest = {
        "format": FORMAT,
        "length": lengths.pop(),
        "vocabulary": vocabulary_hash(tokenizer),
        "settings": dict(settings),
        "samples": [
            {
                "key": s.key,
                "value": s.value,
                "depth": s.depth,
                "book": s.book,
                "more": [asdict(n) for n in s.more],
            }
            for s in samples
        ],
    }
    tensors = {
        "tokens": torch.stack([sample.tokens for sample in samples]),
        "answer_mask": torch.stack([sample.answer_mask for sample in samples]),
    }
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"manifest": json.dumps(manifest)})


def load_needles(
    path: str | Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> tuple[list[NeedleSample], dict[str, Any]]:
    """Read the samples and the manifest that `save_needles` wrote.

    Raises:
        InputError: it is no needle file, a tensor is missing or misshapen, a sample has no answer token, or
            the samples were made with another tokenizer than the one given.
    """
    try:
        with safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {}).get("manifest", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a needle file: {error}") from error
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{path}: format: {manifest.get('format')!r}, not {FORMAT!r}; make it with make_needles"
        )
    if missing := {"tokens", "answer_mask"} - tensors.keys():
        raise InputError(f"{path}: {min(missing)}: missing; make the file anew with make_needles")
    tokens, mask = tensors["tokens"], tensors["answer_mask"]
    shape = (len(manifest["samples"]), manifest["length"])
    if tokens.shape != shape or mask.shape != shape:
        raise InputError(
            f"{path}: tokens {list(tokens.shape)}, answer_mask {list(mask.shape)}: not {list(shape)}"
        )
    if not bool(mask.any(dim=1).all()):
        raise InputError(f"{path}: answer_mask: a sample has no answer; make the file anew with make_needles")
    if tokenizer is not None and manifest["vocabulary"] != vocabulary_hash(tokenizer):
        raise InputError(f"{path}: vocabulary: of another tokenizer; make the file anew with this model's")
    samples = [
        NeedleSample(
            row.to(torch.int64),
            row_mask.to(torch.bool),
            entry["key"],
            entry["value"],
            float(entry["depth"]),
            entry["book"],
            tuple(Needle(**cast(dict[str, Any], needle)) for needle in entry["more"]),
        )
        for row, row_mask, entry in zip(tokens, mask, manifest["samples"], strict=True)
    ]
    return samples, manifest
