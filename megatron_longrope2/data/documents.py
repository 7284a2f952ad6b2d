"""Documents from text files, one at a time: `.txt`, `.jsonl` (also `.gz`, `.zst`) and `.parquet`.

Input is cut into *slices*: parts that can be read without reading what comes before them, so that processes
can share the work and a stopped run can resume. The slices of a path, in order, hold every document once.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from megatron_longrope2.errors import InputError

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SLICE_BYTES = 16 << 20


@dataclass(frozen=True)
class Document:
    """A text and its name: that of its file, or what a `.jsonl` line says in the field `name`."""

    name: str
    text: str


@dataclass(frozen=True)
class Slice:
    """Part of a file: bytes `start` to `stop` of a `.jsonl`, row groups of a `.parquet`, otherwise all of it.

    Attributes:
        size: approximate bytes on disk, for dividing the work and showing progress.
    """

    path: str
    start: int
    stop: int
    size: int


def read_books(path: str | Path) -> list[Document]:
    """All documents of a file or folder, at least one; otherwise as `iter_documents`."""
    books = list(iter_documents(path))
    if not books:
        raise InputError(f"{path}: holds no text; give a file with some, or a folder of such files")
    return books


def iter_documents(path: str | Path, text_field: str = "text") -> Iterator[Document]:
    """Every document of a file, or of all files of the known kinds under a folder (sorted by path).

    A `.txt` is one document; a line of a `.jsonl` or a row of a `.parquet` is one, its text in `text_field`.
    Documents without any text are left out.

    Raises:
        InputError: nothing to read, a damaged file, a line or table without `text_field`.
    """
    for part in slices(path):
        yield from read_slice(part, text_field)


def slices(path: str | Path, slice_bytes: int = SLICE_BYTES) -> list[Slice]:
    """Cut a file or folder into slices of about `slice_bytes` where its format allows it.

    Raises:
        InputError: the path is missing, of another kind, or holds no file of the known kinds.
    """
    return [part for file in _files(Path(path)) for part in _slices_of(file, slice_bytes)]


def read_slice(part: Slice, text_field: str = "text") -> Iterator[Document]:
    """The documents of one slice, with the errors of `iter_documents`."""
    path = Path(part.path)
    with _readable(path):
        if path.suffix == ".txt":
            # utf-8-sig drops a byte order mark, as json.loads does.
            documents: Iterator[Document] = iter([Document(path.stem, path.read_text(encoding="utf-8-sig"))])
        elif path.suffix == ".parquet":
            documents = _read_parquet(path, part, text_field)
        else:
            documents = _read_jsonl(path, part, text_field)
        yield from (document for document in documents if document.text.strip())


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.name.endswith(KINDS) and file.is_file())
        if not found:
            raise InputError(f"{path}: no {', '.join(KINDS)} file in this folder")
        return found
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if not path.name.endswith(KINDS):
        raise InputError(f"{path}: unknown kind of file; give one of {', '.join(KINDS)}")
    return [path]


def _slices_of(path: Path, slice_bytes: int) -> list[Slice]:
    size = path.stat().st_size
    if path.suffix == ".jsonl":
        starts = range(0, size, slice_bytes)
        return [Slice(str(path), a, min(a + slice_bytes, size), min(slice_bytes, size - a)) for a in starts]
    if path.suffix == ".parquet":
        with _readable(path):
            metadata = _parquet_file(path).metadata
        sizes = [
            sum(metadata.row_group(i).column(j).total_compressed_size for j in range(metadata.num_columns))
            for i in range(metadata.num_row_groups)
        ]
        return [Slice(str(path), i, i + 1, size) for i, size in enumerate(sizes)]
    return [Slice(str(path), 0, size, size)]


def _read_jsonl(path: Path, part: Slice, text_field: str) -> Iterator[Document]:
    with _open(path) as stream:
        at = part.start
        if at:
            # A line that began before `start` belongs to the previous slice.
            stream.seek(at - 1)
            at += len(stream.readline()) - 1
        whole = path.suffix != ".jsonl"
        while (whole or at < part.stop) and (line := stream.readline()):
            place, at = at, at + len(line)
            if not line.isspace():
                yield _parse_line(line, text_field, path, place)


def _parse_line(line: bytes, text_field: str, path: Path, place: int) -> Document:
    where = f"{path}: line at byte {place}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(text := record.get(text_field), str):
        raise InputError(f'{where}: no text in field "{text_field}"; name the field that holds it')
    if b"\\ud" in line.lower():
        # JSON can spell half of a surrogate pair; web text does so, and no tokenizer accepts it.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Document(str(record.get("name", f"{path.name}:{place}")), text)


def _read_parquet(path: Path, part: Slice, text_field: str) -> Iterator[Document]:
    file = _parquet_file(path)
    if text_field not in file.schema_arrow.names:
        raise InputError(
            f'{path}: no column "{text_field}" among {", ".join(file.schema_arrow.names)}; '
            "name the one that holds the text"
        )
    row = 0
    groups = list(range(part.start, part.stop))
    for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[text_field]):
        for text in batch.column(0).to_pylist():
            row += 1
            if text is not None and not isinstance(text, str):
                raise InputError(f'{path}: column "{text_field}": holds {type(text).__name__}, not text')
            yield Document(f"{path.name}:{part.start}:{row}", text or "")


def _parquet_file(path: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path)


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".zst":
        import pyarrow  # slow to import, as pyarrow.parquet above

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 1 << 20)
    return path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or cut off: {error}; copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; copy it again") from error
    except ValueError as error:  # pyarrow.ArrowInvalid is one
        raise InputError(f"{path}: damaged: {str(error).splitlines()[0]}; copy it again") from error
