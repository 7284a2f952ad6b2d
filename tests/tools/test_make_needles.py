"""The command line that writes needle files."""

import sys
from pathlib import Path

import pytest

from megatron_longrope2.data.needles import load_needles
from megatron_longrope2.data.pools import open_pool
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.tools.make_needles import main

EXAMPLE = Path(__file__).parents[2] / "examples/tiny_cpu"


def run(monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    arguments = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", *str(value).split())
    ]
    monkeypatch.setattr(sys, "argv", ["make_needles", *arguments])
    main()


def test_makes_a_file_of_the_samples_asked_for(monkeypatch, tmp_path, capsys) -> None:
    output = tmp_path / "needles.safetensors"
    run(
        monkeypatch,
        tokenizer=EXAMPLE / "base",
        books=EXAMPLE / "books/held_out",
        length=512,
        output=output,
        samples=6,
        needle_depths="0 0.5 1",
        keys="held_out",
        needles_per_document=2,
        value_kind="word",
    )
    samples, manifest = load_needles(output, load_tokenizer(EXAMPLE / "base"))
    assert [sample.depth for sample in samples] == [0, 0.5, 1, 0, 0.5, 1]
    assert len({sample.book for sample in samples}) == 6
    assert all(len(sample.more) == 1 for sample in samples)
    assert manifest["length"] == 512
    assert manifest["settings"]["needle_depths"] == [0, 0.5, 1]
    assert "6 samples of 512 tokens from 6 books" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "absent"}, "absent: no such folder"),
        ({"tokenizer": EXAMPLE / "books"}, "tokenizer: cannot be read; give tokenizer.json"),
        ({"books": "absent.txt"}, "absent.txt: cannot be read"),
        ({"length": 500_000}, "books: the longest has"),
        ({"needle_depths": 2}, "depth: 2.0 is not a fraction"),
        ({"samples": 0}, "--samples: 0"),
        ({"length": "300 400"}, "--length: [300, 400]: a needle file holds one length"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    monkeypatch, tmp_path, capfd, options: dict, message: str
) -> None:
    good = {"tokenizer": EXAMPLE / "base", "books": EXAMPLE / "books/held_out", "length": 300}
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, **(good | {"output": tmp_path / "n.safetensors"} | options))
    assert stop.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


def test_writes_the_samples_as_training_documents_too(monkeypatch, tmp_path) -> None:
    output, pool = tmp_path / "needles.safetensors", tmp_path / "pool" / "needles"
    books = EXAMPLE / "books/train"
    run(monkeypatch, tokenizer=EXAMPLE / "base", books=books, length=300, output=output, samples=3, pool=pool)
    samples, _ = load_needles(output, load_tokenizer(EXAMPLE / "base"))
    documents = open_pool(pool)
    assert len(documents) == 3
    for sample, document in zip(samples, documents, strict=True):
        assert document.tolist() == sample.tokens.tolist()


def test_a_pool_of_several_lengths(monkeypatch, tmp_path) -> None:
    books = EXAMPLE / "books/train"
    depths = {"needle_depths": "0 1", "samples": 5, "length": "300 400"}
    run(monkeypatch, tokenizer=EXAMPLE / "base", books=books, pool=tmp_path / "needles", **depths)
    assert [len(document) for document in open_pool(tmp_path / "needles")] == [300, 300, 400, 400, 300]
    assert not (tmp_path / "needles.safetensors").exists()


def test_nowhere_to_write(monkeypatch, capfd) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tokenizer=EXAMPLE / "base", books=EXAMPLE / "books/train", length=300)
    assert "--output: nothing to write" in capfd.readouterr().err
