"""Every format yields every document once, however it is sliced; names and damage."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_longrope2.data import documents as module
from megatron_longrope2.data.documents import (
    Document,
    draw_books,
    iter_documents,
    read_books,
    read_slice,
    slices,
)
from megatron_longrope2.errors import InputError

# U+2028 ends a line for str.splitlines, but not for JSON lines.
TEXTS = [f"text {i} é \u2028 {'x' * (i % 37)}" for i in range(300)]
JSONL = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()
FORMATS = ["a.jsonl", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst", "a.parquet"]


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "a.jsonl").write_bytes(JSONL)
    for name in ("a.jsonl.gz", "a.json.gz"):
        (folder / name).write_bytes(gzip.compress(JSONL))
    middle = JSONL.index(b"\n", len(JSONL) // 2) + 1
    # Large corpora are often concatenations of compressed files.
    (folder / "a.jsonl.zst").write_bytes(zstd(JSONL[:middle]) + zstd(JSONL[middle:]))
    pq.write_table(pa.table({"text": TEXTS, "id": range(300)}), folder / "a.parquet", row_group_size=70)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_yields_every_document_in_order(folder: Path, name: str) -> None:
    assert [document.text for document in iter_documents(folder / name)] == TEXTS


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(slice_bytes=st.integers(1, 20_000), name=st.sampled_from(FORMATS))
def test_slices_lose_and_repeat_nothing(folder: Path, slice_bytes: int, name: str) -> None:
    parts = slices(folder / name, slice_bytes)
    assert [document.text for part in parts for document in read_slice(part)] == TEXTS


def test_a_folder_is_read_in_order_of_path_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/two.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "SOURCE.md").write_text("not a document")
    assert [document.text for document in iter_documents(tmp_path)] == ["one", "two"]


def test_documents_are_named_after_their_file_or_by_the_field_name(tmp_path: Path) -> None:
    (tmp_path / "40_matthew.txt").write_text("Ä text\n", encoding="utf-8")
    lines = [{"text": "one\u2028more", "name": "first", "other": 1}, {"text": "two"}]
    content = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
    (tmp_path / "b.jsonl").write_bytes(content)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(content))
    place = content.rindex(b"{")
    assert read_books(tmp_path) == [
        Document("40_matthew", "Ä text\n"),
        *(Document("first", "one\u2028more"), Document(f"b.jsonl:{place}", "two")),
        *(Document("first", "one\u2028more"), Document(f"c.jsonl.gz:{place}", "two")),
    ]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n', encoding="utf-8-sig")
    assert [document.text for document in iter_documents(tmp_path)] == ["one", "two"]


def test_another_field_may_hold_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "code"}\n\n{"content": "more"}')
    assert [d.text for d in iter_documents(tmp_path / "a.jsonl", "content")] == ["code", "more"]


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\uD800b \\ud83d\\ude00"}')
    assert [d.text for d in iter_documents(tmp_path / "a.jsonl")] == ["a\ufffdb \U0001f600"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jsonl.gz", "Truncated"),
        ("a.jsonl.zst", "Truncated"),
        ("a.parquet", "Parquet magic bytes not found"),
    ],
)
def test_a_cut_off_file_is_named(folder: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:-30])
    with pytest.raises(InputError, match=f"{name}: cannot be read: {message}"):
        list(iter_documents(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', "line at byte 15: not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', 'document a.jsonl:0: no text in field "text"'),
        ("a.jsonl", b'{"text": 3}\n', 'no text in field "text"'),
        ("a.txt", b"\xff\xfe", "cannot be read: 'utf-8' codec can't decode byte 0xff"),
        ("a.pdf", b"", r"no such file or folder, or none that ends in \.txt, \.jsonl"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(iter_documents(tmp_path / name))


def test_a_parquet_without_the_column_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match='no column "body"; name the one of text, id'):
        list(iter_documents(folder / "a.parquet", "body"))


def test_a_missing_path_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        slices(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no such file or folder, or none that ends in \.txt"):
        slices(tmp_path)
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"blank\.txt: holds no text"):
        read_books(tmp_path / "blank.txt")


def test_drawn_books_are_read_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"{number} " * (100 + number))
    opened = []
    original = module.read_slice

    def read(part: module.Slice, *rest: object) -> Iterator[Document]:
        opened.append(Path(part.path).name)
        yield from original(part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_slice", read)
    monkeypatch.setattr(module, "BOOK_CHARACTERS", 50)
    books = draw_books(tmp_path, 1, 10)
    first, second = next(books), next(books)
    assert opened == [f"{first.name}.txt", f"{second.name}.txt"]
    assert first.text == (f"{first.name} " * 200)[:60]
    drawn = [first, second, *books]
    assert sorted(book.name for book in drawn) == list("012345")
    assert [book.name for book in draw_books(tmp_path, 1, 10)] == [book.name for book in drawn]
    assert [book.name for book in draw_books(tmp_path, 2, 10)] != [book.name for book in drawn]
    assert [len(book.text) for book in draw_books(tmp_path, 1, 1)] == [50] * 6


@pytest.mark.parametrize("name", [*FORMATS, "a.txt"])
def test_what_is_not_wanted_is_left_out(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    texts = TEXTS
    if name == "a.txt":
        path, texts = tmp_path / name, TEXTS[30:31]
        path.write_text(texts[0])
    asked = []

    def wanted(fewest: int, most: int) -> bool:
        asked.append((fewest, most))
        return most >= 40

    found = [d.text for part in slices(path) for d in read_slice(part, wanted=wanted)]
    assert found == [text for text in texts if len(text) >= 40]
    assert all(fewest <= most for fewest, most in asked)


def test_a_line_that_is_too_short_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("no JSON\n" + json.dumps({"text": "x" * 50}) + "\n")
    (part,) = slices(tmp_path)
    assert [len(d.text) for d in read_slice(part, wanted=lambda _, most: most >= 50)] == [50]
