"""Books from text files, JSON lines and folders."""

import json

import pytest

from megatron_longrope2.data.books import Book, read_books
from megatron_longrope2.errors import InputError


def test_reads_a_text_json_lines_and_a_folder_of_both(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("Ä text\n", encoding="utf-8")
    lines = [{"text": "one\u2028more", "name": "first", "other": 1}, {"text": "two"}]
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper/b.jsonl").write_text(
        "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8"
    )
    (tmp_path / "SOURCE.md").write_text("not a book")
    assert read_books(tmp_path / "a.txt") == [Book("a", "Ä text\n")]
    expected = [Book("first", "one\u2028more"), Book("b:3", "two")]
    assert read_books(tmp_path / "deeper/b.jsonl") == expected
    assert read_books(tmp_path) == [Book("a", "Ä text\n"), *expected]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.jsonl", b'{"text": "a"}\n{"txt": "a"}\n', "b.jsonl: line 2: no string in field `text`"),
        ("b.jsonl", b'{"text": 5}', "line 1: no string in field `text`"),
        ("b.jsonl", b"{", "line 1: not valid JSON"),
        ("b.txt", b"\xff\xfe", "b.txt: not UTF-8 text"),
        ("b.txt", b" \n", "b.txt: no books in it"),
        ("b.pdf", b"", "b.pdf: not a .txt, a .jsonl or a folder"),
    ],
)
def test_refused_files(tmp_path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_books(tmp_path / name)


def test_refuses_missing_and_empty_places(tmp_path) -> None:
    with pytest.raises(InputError, match=r"absent\.txt: cannot be read: No such file"):
        read_books(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="no books in it"):
        read_books(tmp_path)
