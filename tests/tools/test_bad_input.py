"""What a user gets wrong first: one line, exit status 2, nothing half-written."""

from pathlib import Path

import pytest

from megatron_longrope2.rope import make_factors
from tests.processes import longrope2

BASE = Path(__file__).parents[2] / "examples/tiny_cpu/base"


def refuses(tmp_path: Path, *command: object) -> str:
    """The one line on stderr; everything else about the refusal is checked here."""
    before = sorted(tmp_path.rglob("*"))
    finished = longrope2(*command)
    assert finished.returncode == 2, finished.stderr
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert sorted(tmp_path.rglob("*")) == before
    return errors[0]


@pytest.mark.parametrize(
    "command",
    [
        ["import", "--hf-dir", "missing", "--save-dir", "{out}"],
        ["export", "--load-dir", "missing", "--save-dir", "{out}"],
        [
            *("preprocess", "--input", "missing", "--tokenizer", BASE),
            *("--original-length", 256, "--output", "{out}"),
        ],
        ["needles", "--books", "missing", "--tokenizer", BASE, "--lengths", 512, "--output", "{out}"],
        [
            *("search", "--load", "missing", "--books", BASE),
            *("--target-length", 512, "--output", "{out}"),
        ],
        ["factors", "show", "missing.json"],
        ["train", "--pretrained-checkpoint", "missing"],
    ],
    ids=lambda command: command[0],
)
def test_a_wrong_path_is_named(tmp_path: Path, command: list[object]) -> None:
    words = [str(word).replace("{out}", str(tmp_path / "out")) for word in command]
    assert "missing" in refuses(tmp_path, *words)


def test_factors_of_another_model(tmp_path: Path) -> None:
    factors = tmp_path / "factors.json"
    make_factors("ntk", rope_base=10000.0, rotary_dim=128, original_length=256, target_length=2048).save(
        factors
    )
    command = ("import", "--hf-dir", BASE, "--save-dir", tmp_path / "out")
    assert "rotary_dim" in refuses(tmp_path, *command, "--rope-factors", factors)


def test_texts_without_a_long_document(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "short.txt").write_text("In the beginning was the Word.")
    line = refuses(
        tmp_path,
        *("preprocess", "--input", books, "--tokenizer", BASE),
        *("--original-length", 256, "--output", tmp_path / "out"),
    )
    assert f"{books}: no document of 257 or more tokens" in line


def test_target_not_longer_than_the_original(tmp_path: Path) -> None:
    line = refuses(
        tmp_path,
        *("factors", "make", "--method", "ntk", "--rope-base", 10000, "--rotary-dim", 64),
        *("--original-length", 256, "--target-length", 256, "--output", tmp_path / "factors.json"),
    )
    assert "target_length" in line
