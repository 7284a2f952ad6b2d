"""Factors by path, by published name, from a CSV; and that the package stays light."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import load_factors, make_factors
from megatron_longrope2.rope.load import published_names

MODEL: dict[str, Any] = {"rope_base": 10000, "original_length": 256, "target_length": 2048}


def test_published_llama3() -> None:
    factors = load_factors("llama3-8b-128k")
    assert (factors.rope_base, factors.rotary_dim, factors.critical_dim) == (500000, 128, 33)
    assert (factors.original_length, factors.target_length) == (8192, 131072)
    assert factors.long_factor[33:36] == (21.81, 21.87, 21.88)
    assert factors.long_factor[61:] == (25.49, 26.01, 26.05)
    assert "arXiv 2502.20082" in factors.provenance["source"]


@pytest.mark.parametrize("name", published_names())
def test_every_published_set_is_valid_and_states_its_source(name: str) -> None:
    factors = load_factors(name)
    assert factors.ood_dims() == []
    assert factors.provenance["source"]


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = make_factors("pi", rotary_dim=8, **MODEL)
    mine.save(tmp_path / "llama3-8b-128k")
    monkeypatch.chdir(tmp_path)
    assert load_factors("llama3-8b-128k") == mine


def test_csv_round_trip(tmp_path: Path) -> None:
    made = make_factors("ntk", rotary_dim=8, **MODEL)
    made.save(tmp_path / "f.csv")
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 4
    read = load_factors(tmp_path / "f.csv", **MODEL, critical_dim=2)
    assert read.long_factor == made.long_factor
    assert (read.method, read.rotary_dim, read.critical_dim) == ("custom", 8, 2)


def test_csv_of_the_authors(tmp_path: Path) -> None:
    """One number a line, whole numbers written without a point, no newline at the end."""
    (tmp_path / "f.csv").write_text("1\n1.097906416\n21.81\n26.05")
    assert load_factors(tmp_path / "f.csv", **MODEL).long_factor == (1, 1.097906416, 21.81, 26.05)


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("1\n2\n", {"rope_base": None}, "rope_base: a CSV does not hold it"),
        ("1\n2\n", {"target_length": None}, "target_length: a CSV does not hold it"),
        ("1\ntwo\n", {}, "1: Input should be a valid number, .*, not 'two'"),
        ("1\nnan\n", {}, "long_factor.1: Input should be a finite number"),
        ("2\n1\n", {}, "long_factor: entry 1"),
        ("1 2 3\n1 2 3\n", {}, "0: Input should be a valid number, .*, not '1 2 3'"),
        ("1,2,3,4\n", {}, "0: Input should be a valid number, .*, not '1,2,3,4'"),
        ("", {}, "rotary_dim: Input should be greater than or equal to 2, not 0"),
        ("1\n2\n", {"rotary_dim": 8}, "long_factor: 2 numbers, but half the rotary dimension is 4"),
    ],
)
def test_csv_refusals(tmp_path: Path, text: str, given: dict[str, Any], message: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{path}: {message}"):
        load_factors(path, **(MODEL | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rope_base": 10000}, "rope_base: the factors are for 500000, the model has 10000"),
        ({"rotary_dim": 64}, "rotary_dim: the factors are for 128, the model has 64"),
        ({"target_length": 65536}, "target_length: the factors are for 131072, the model has 65536"),
    ],
)
def test_refuses_factors_of_another_model(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"llama3-8b-128k: {message}"):
        load_factors("llama3-8b-128k", **given)


def test_refuses_an_unknown_place(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"llama9: no such factor file, nor a published set; .*llama3-8b-128k"
    ):
        load_factors("llama9")
    with pytest.raises(InputError, match=r"none.json: cannot be read: No such file"):
        load_factors(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad.json: not valid JSON"):
        load_factors(tmp_path / "bad.json")
    with pytest.raises(InputError, match=r"none.csv: cannot be read"):
        load_factors(tmp_path / "none.csv", **MODEL)


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make_factors("pi", rotary_dim=8, **MODEL).save(tmp_path / "file" / "f.json")


def test_import_is_light() -> None:
    """Without torch, transformers, Megatron or matplotlib, `longrope2 factors` takes under two seconds."""
    code = (
        "import sys, time; start = time.process_time(); from megatron_longrope2.cli import run_main;"
        "sys.argv = ['longrope2', 'factors', 'show', 'llama3-8b-128k']; run_main();"
        "sys.argv = ['longrope2', 'factors', 'make', '--help']; run_main();"
        "assert time.process_time() - start < 2;"
        "assert not {'torch', 'transformers', 'megatron', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
