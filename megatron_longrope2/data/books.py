"""Named texts from .txt and .jsonl files."""

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_longrope2.errors import InputError


@dataclass(frozen=True)
class Book:
    """A named text."""

    name: str
    text: str


def read_books(path: str | Path) -> list[Book]:
    """Read the books of a `.txt` (one), a `.jsonl` (one a line, field `text`) or a folder of both.

    Raises:
        InputError: a path is missing or of another kind, a line has no text, or there is no book.
    """
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl")) if path.is_dir() else [path]
    books = [book for file in files for book in _read_file(file) if book.text.strip()]
    if not books:
        raise InputError(f"{path}: no books in it; give a .txt, a .jsonl or a folder of them")
    return books


def _read_file(path: Path) -> list[Book]:
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path}: not a .txt, a .jsonl or a folder of them")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    if path.suffix == ".txt":
        return [Book(path.stem, text)]
    books = []
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number}: not valid JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise InputError(f"{path}: line {number}: no string in field `text`; write one book as its value")
        books.append(Book(str(record.get("name", f"{path.stem}:{number}")), record["text"]))
    return books
