"""The measurements of one checkpoint as the command line offers them: settings in, a record's content out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_longrope2.data.documents import Document, read_books
from megatron_longrope2.data.needles import NeedleSampler
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.needle_grid import NeedleGrid, measure_needles
from megatron_longrope2.evaluation.perplexity import (
    Perplexity,
    octave_edges,
    position_perplexity,
    sliding_perplexity,
    text_perplexity,
)
from megatron_longrope2.evaluation.ruler import BOOK_TASKS, TASKS, check_tokenizer, evaluate_ruler
from megatron_longrope2.evaluation.subject import Subject
from megatron_longrope2.scoring.samples import document_samples


@dataclass(frozen=True)
class Measured:
    """A record's content.

    Attributes:
        settings: what decided the result besides the checkpoint.
        result: the numbers.
        beyond: lengths outside the checkpoint's window.
        summary: a line or two for the screen.
    """

    settings: dict[str, Any]
    result: dict[str, Any]
    beyond: list[int]
    summary: str


def measure_needle(
    subject: Subject, books: Path, lengths: Sequence[int], depths: int, repetitions: int, seed: int
) -> Measured:
    """Needles with held-out keys over lengths (tokens) and `depths` depths, evenly from 0 to 1.

    Raises:
        InputError: as `read_books` and `measure_needles`.
    """
    _distinct(lengths)
    if depths < 1:
        raise InputError(f"--depths: {depths} is no number of depths; use 1 or more")
    beyond = subject.beyond_window(lengths)
    places = [place / max(depths - 1, 1) for place in range(depths)]
    sampler = NeedleSampler(subject.tokenizer, _books(subject, books), seed=seed, keys="held_out")
    grid = measure_needles(subject.scorer, sampler, lengths, places, repetitions)
    settings = {
        "books": str(books),
        "lengths": list(lengths),
        "depths": places,
        "repetitions": repetitions,
        "seed": seed,
    }
    return Measured(settings, grid.to_dict(), beyond, _needle_summary(grid))


def measure_perplexity(
    subject: Subject,
    books: Path,
    short_texts: int,
    long_texts: int,
    long_length: int | None,
    windows: Sequence[int],
    stride: int,
    seed: int,
) -> Measured:
    """Perplexity of texts of the original length, of long ones by position, and by sliding windows (tokens).

    Returns:
        A result with `short`, `positions` [{`start`, `end`, ...}] and `sliding` [{`window`, ...}].

    Raises:
        InputError: nothing to measure, or as `read_books`, `document_samples` and `sliding_perplexity`.
    """
    if min(short_texts, long_texts) < 0 or not (short_texts or long_texts or windows):
        raise InputError(
            f"perplexity: {short_texts} short texts, {long_texts} long ones and no sliding window leave "
            "nothing to measure; give at least one"
        )
    if long_length is not None and long_length < 2:
        raise InputError(f"--long-length: {long_length} has no token to predict; use 2 or more")
    texts = _books(subject, books)
    original, long = subject.original_length, long_length or subject.target_length
    beyond = subject.beyond_window([*([long] if long_texts else []), *windows])
    result: dict[str, Any] = {"short": None, "positions": [], "sliding": []}
    lines = []
    if short_texts:
        samples = document_samples(subject.tokenizer, texts, short_texts, original, seed)
        short = text_perplexity(subject.scorer, samples)
        result["short"] = short.to_dict()
        lines.append(f"short window, {original} tokens: {short.value:.3f}")
    if long_texts:
        samples = document_samples(subject.tokenizer, texts, long_texts, long, seed)
        buckets = position_perplexity(subject.scorer, samples, octave_edges(original, long))
        for (start, end), measured in buckets.items():
            result["positions"].append({"start": start, "end": end, **measured.to_dict()})
            lines.append(f"positions {start}-{end}: {measured.value:.3f}")
    for window in windows:
        measured = _sliding(subject, texts, window, stride)
        result["sliding"].append({"window": window, **measured.to_dict()})
        lines.append(f"sliding window of {window}: {measured.value:.3f}")
    settings = {
        "books": str(books),
        "short_texts": short_texts,
        "long_texts": long_texts,
        "long_length": long,
        "windows": list(windows),
        "stride": stride,
        "seed": seed,
    }
    return Measured(settings, result, beyond, "\n".join(lines))


def measure_ruler(
    subject: Subject,
    books: Path | None,
    tasks: Sequence[str] | None,
    lengths: Sequence[int],
    samples: int,
    seed: int,
) -> Measured:
    """RULER's tasks (None: all, or without books those that need none) at lengths in tokens.

    Raises:
        InputError: as `evaluate_ruler`.
    """
    _distinct(lengths)
    chosen = tasks or [name for name in TASKS if books is not None or name not in BOOK_TASKS]
    beyond = subject.beyond_window(lengths)
    rescaled = subject.method != "none"
    measured = evaluate_ruler(
        subject.generate,
        subject.tokenizer,
        chosen,
        lengths,
        samples,
        target_length=subject.target_length if rescaled else None,
        seed=seed,
        books=read_books(books) if books is not None else (),
    )
    settings = {
        "books": None if books is None else str(books),
        "tasks": list(chosen),
        "lengths": list(lengths),
        "samples": samples,
        "seed": seed,
    }
    summary = "\n".join(f"RULER at {n} tokens: {measured.average(n):.2f}" for n in measured.lengths)
    return Measured(settings, measured.to_dict(), beyond, summary)


def _distinct(lengths: Sequence[int]) -> None:
    """A length given twice would count its samples twice, and its intervals would be too narrow."""
    for length in lengths:
        if lengths.count(length) > 1:
            raise InputError(f"--lengths: {length} is given twice; give each length once")


def _books(subject: Subject, path: Path) -> list[Document]:
    """The books, of which the tokenizer knows the beginnings."""
    books = read_books(path)
    for book in books:
        check_tokenizer(subject.tokenizer, book.text[:2000])
    return books


def _needle_summary(grid: NeedleGrid) -> str:
    return "\n".join(
        f"needles at {length} tokens: {part.accuracy:.1%} right, perplexity {part.perplexity:.4g}"
        for length in grid.lengths
        for part in [grid.at(length)]
    )


def _sliding(subject: Subject, books: Sequence[Document], window: int, stride: int) -> Perplexity:
    """Over whole books, as the tokenizer encodes them."""
    documents = [torch.tensor(subject.tokenizer(book.text, verbose=False)["input_ids"]) for book in books]
    return sliding_perplexity(subject.scorer, documents, window, stride)
