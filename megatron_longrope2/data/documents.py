"""Documents from text files, one at a time: `.txt`, `.jsonl` (also `.gz`, `.zst`), `.json.gz` and `.parquet`.

Input is cut into *slices*: parts that can be read without reading what comes before them, so that processes
can share the work and a stopped run can resume. The slices of a path, in order, hold every document once.
"""

import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
from pyarrow.parquet import ParquetFile

from megatron_longrope2.errors import InputError, one_line

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".parquet")
SLICE_BYTES = 16 << 20

# Characters of a book that samples are drawn from, at least where it has so many.
BOOK_CHARACTERS = 1 << 16

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
# Bytes that pyarrow reads of a compressed file at a time.
_BLOCK = 1 << 16

Wanted = Callable[[int, int], bool]
"""Whether a document may be needed that has at least so many, and at most so many, characters."""


@dataclass(frozen=True)
class Document:
    """A text and its name: that of its file, or what a `.jsonl` line says in the field `name`.

    Attributes:
        read: bytes of its slice, as `Slice.size` counts them, up to the document's end; approximate where the
            file is compressed.
    """

    name: str
    text: str
    read: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Slice:
    """Part of a file: bytes `start` to `stop` of a `.jsonl`, row group `start` of a `.parquet`, or all of it.

    Attributes:
        size: approximate bytes, for dividing the work and showing progress.
    """

    path: str
    start: int
    stop: int
    size: int


def draw_books(path: str | Path, seed: int, length: int) -> Iterator[Document]:
    """The documents of a file or folder, one file (or part of one) after another in a random order.

    They are read as they are asked for. Of each there is the beginning only, which is enough for samples of
    `length` tokens at many places.

    Raises:
        InputError: as `iter_documents`.
    """
    parts = slices(path)
    most = max(BOOK_CHARACTERS, 6 * length)
    for book in _read(path, random.Random(f"books/{seed}").sample(parts, len(parts)), "text"):
        yield replace(book, text=book.text[:most])


def read_books(path: str | Path) -> list[Document]:
    """All documents of a file or folder; otherwise as `iter_documents`."""
    return list(iter_documents(path))


def iter_documents(path: str | Path, text_field: str = "text") -> Iterator[Document]:
    """Every document of a file, or of all files of the known kinds under a folder (sorted by path).

    A `.txt` is one document; a line of a `.jsonl` or a row of a `.parquet` is one, its text in `text_field`.
    Documents without any text are left out.

    Raises:
        InputError: nothing to read, a damaged file, a line or table without `text_field`, or no text at all.
    """
    return _read(path, slices(path), text_field)


def _read(path: str | Path, parts: Sequence[Slice], text_field: str) -> Iterator[Document]:
    found = False
    for part in parts:
        for document in read_slice(part, text_field):
            found = True
            yield document
    if not found:
        raise InputError(f"{path}: holds no text; give a file with some, or a folder of such files")


def slices(path: str | Path, slice_bytes: int = SLICE_BYTES) -> list[Slice]:
    """Cut a file or folder into slices of about `slice_bytes` where its format allows it.

    Raises:
        InputError: there is no file of the known kinds.
    """
    root = Path(path)
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    files = [file for file in files if file.name.endswith(KINDS) and file.is_file()]
    if not files:
        raise InputError(f"{path}: no such file or folder, or none that ends in {', '.join(KINDS)}")
    return [part for file in files for part in _slices_of(file, slice_bytes)]


def read_slice(part: Slice, text_field: str = "text", wanted: Wanted | None = None) -> Iterator[Document]:
    """The documents of one slice, with the errors of `iter_documents`.

    Args:
        wanted: leave out the documents that it says are not needed. It is asked as early as there are bounds
            on a document's characters: a line's bytes, before the line is parsed. What is left out is not
            checked.
    """
    path = Path(part.path)
    with _readable(path):
        if path.suffix == ".txt":
            records = _txt_records(path, part, text_field, wanted)
        elif path.suffix == ".parquet":
            records = _parquet_records(path, part, text_field, wanted)
        else:
            records = _jsonl_records(path, part, wanted)
        for name, record, read in records:
            if not isinstance(record, dict) or not isinstance(text := record.get(text_field), str):
                raise InputError(
                    f'{path}: document {name}: no text in field "{text_field}"; name the field that holds it'
                )
            if not text or text.isspace() or (wanted and not wanted(len(text), len(text))):
                continue
            # JSON can spell half of a surrogate pair; web text does so, and no tokenizer accepts it.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            yield Document(str(record.get("name", name)), text, read)


def _slices_of(path: Path, slice_bytes: int) -> list[Slice]:
    size = path.stat().st_size
    if path.suffix == ".jsonl":
        starts = range(0, size, slice_bytes)
        return [Slice(str(path), a, a + slice_bytes, min(slice_bytes, size - a)) for a in starts]
    if path.suffix == ".parquet":
        with _readable(path):
            metadata = ParquetFile(path).metadata
        groups = range(metadata.num_row_groups)
        return [Slice(str(path), i, i + 1, metadata.row_group(i).total_byte_size) for i in groups]
    return [Slice(str(path), 0, sys.maxsize, size)]


# The name of a document, the record that has its text, and the bytes of the slice that have been read.
_Records = Iterator[tuple[str, Any, int]]


def _txt_records(path: Path, part: Slice, text_field: str, wanted: Wanted | None) -> _Records:
    """The file, by its name. A character takes at most four bytes."""
    if not wanted or wanted(part.size // 4, part.size):
        # utf-8-sig drops a byte order mark, as json.loads does.
        yield path.stem, {text_field: path.read_text(encoding="utf-8-sig")}, part.size


def _jsonl_records(path: Path, part: Slice, wanted: Wanted | None) -> _Records:
    """Each line that is not blank, by its place in bytes. A line has at least as many bytes as characters."""
    compression = _COMPRESSION.get(path.suffix)
    with path.open("rb") as file:
        stream: Any = file
        if compression:
            stream = io.BufferedReader(pyarrow.input_stream(file, compression), _BLOCK)
        at = part.start
        if at:
            # A line that began before `start` belongs to the previous slice.
            stream.seek(at - 1)
            at += len(stream.readline()) - 1
        while at < part.stop and (line := stream.readline()):
            place, at = at, at + len(line)
            if line.isspace() or (wanted and not wanted(0, len(line))):
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}: line at byte {place}: not valid JSON: {error}") from error
            read = max(1, file.tell() - _BLOCK // 2) if compression else at - part.start
            yield f"{path.name}:{place}", record, read


def _parquet_records(path: Path, part: Slice, text_field: str, wanted: Wanted | None) -> _Records:
    """Each row of a row group, by their numbers."""
    file = ParquetFile(path)
    if text_field not in (names := file.schema_arrow.names):
        raise InputError(
            f'{path}: no column "{text_field}"; name the one of {", ".join(names)} that has text'
        )
    rows, row = file.metadata.row_group(part.start).num_rows, 0
    for batch in file.iter_batches(batch_size=64, row_groups=[part.start], columns=[text_field]):
        column = batch.column(0)
        # Lengths are counted without making a text of each row.
        lengths = pyarrow.compute.utf8_length(column.cast(pyarrow.large_string())).to_pylist()
        for place, characters in enumerate(lengths):
            row += 1
            if characters and (not wanted or wanted(characters, characters)):
                record = {text_field: column[place].as_py()}
                yield f"{path.name}:{part.start}:{row}", record, part.size * row // rows


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: text that is not UTF-8, or pyarrow's
        raise InputError(f"{path}: cannot be read: {one_line(error)}; repair or replace it") from error
