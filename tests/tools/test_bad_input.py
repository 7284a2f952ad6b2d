"""What a user gets wrong first: one line, exit status 2, nothing half-written."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_longrope2.rope import make_factors

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples/tiny_cpu/base"


def refuses(tmp_path: Path, *command: object) -> str:
    """The one line on stderr; everything else about the refusal is checked here."""
    before = sorted(tmp_path.rglob("*"))
    finished = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2, finished.stderr
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert sorted(tmp_path.rglob("*")) == before
    return errors[0]


@pytest.mark.parametrize(
    "command",
    [
        ["tools/convert_hf_to_megatron.py", "--hf-dir", "missing", "--save-dir", "{out}"],
        ["tools/convert_megatron_to_hf.py", "--load-dir", "missing", "--save-dir", "{out}"],
        [
            *("tools/preprocess_data.py", "--input", "missing", "--tokenizer", BASE),
            *("--original-length", 256, "--output", "{out}"),
        ],
        [
            *("tools/make_needles.py", "--books", "missing", "--tokenizer", BASE),
            *("--length", 512, "--output", "{out}"),
        ],
        [
            *("tools/search_factors.py", "--load", "missing", "--books", BASE),
            *("--target-length", 512, "--output", "{out}"),
        ],
        ["tools/rescale_rope.py", "show", "missing.json"],
        ["-m", "megatron_longrope2.pretrain", "--pretrained-checkpoint", "missing"],
    ],
    ids=lambda command: Path(str(command[0])).stem,
)
def test_a_wrong_path_is_named(tmp_path: Path, command: list[object]) -> None:
    words = [str(word).replace("{out}", str(tmp_path / "out")) for word in command]
    assert "missing" in refuses(tmp_path, *words)


def test_factors_of_another_model(tmp_path: Path) -> None:
    factors = tmp_path / "factors.json"
    make_factors("ntk", rope_base=10000.0, rotary_dim=128, original_length=256, target_length=2048).save(
        factors
    )
    command = ("tools/convert_hf_to_megatron.py", "--hf-dir", BASE, "--save-dir", tmp_path / "out")
    assert "rotary_dim" in refuses(tmp_path, *command, "--rope-factors", factors)


def test_texts_without_a_long_document(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "short.txt").write_text("In the beginning was the Word.")
    line = refuses(
        tmp_path,
        *("tools/preprocess_data.py", "--input", books, "--tokenizer", BASE),
        *("--original-length", 256, "--output", tmp_path / "out"),
    )
    assert "books" in line
    assert "256" in line


def test_target_not_longer_than_the_original(tmp_path: Path) -> None:
    line = refuses(
        tmp_path,
        *("tools/rescale_rope.py", "make", "--method", "ntk", "--rope-base", 10000, "--rotary-dim", 64),
        *("--original-length", 256, "--target-length", 256, "--output", tmp_path / "factors.json"),
    )
    assert "target_length" in line
