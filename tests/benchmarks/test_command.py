"""`python -m benchmarks`, and what all benchmarks have in common. Speed itself is not tested here."""

import dataclasses
import time
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.measuring import in_turns
from megatron_longrope2.files import read_json
from tests.processes import ROOT, run


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_described(name: str) -> None:
    module = import_module(f"benchmarks.{name}")
    assert (module.__doc__ or "").strip()
    inherited = {field.name for field in dataclasses.fields(module.Settings.__base__)}
    for field in dataclasses.fields(module.Settings):
        assert field.name in inherited or f"        {field.name}: " in module.Settings.__doc__
    assert f"| `{name}` |" in (ROOT / "benchmarks/README.md").read_text()


def test_the_help_lists_all() -> None:
    finished = run("-m", "benchmarks", "--help")
    assert finished.returncode == 0, finished.stderr
    assert all(f" {name} " in finished.stdout for name in BENCHMARKS)


def test_help_of_a_search_lists_its_options_too() -> None:
    output = run("-m", "benchmarks", "search", "--help").stdout
    assert "Time the factor search against" in output
    assert all(option in output for option in ("--hf-dir", "--target-length", "--population", "--bf16"))


def test_json_table_and_ratios(tmp_path: Path) -> None:
    sizes = ("--characters", 20000, "--original-length", 256, "--mix-characters", 500_000, "--repeats", 1)
    finished = run("-m", "benchmarks", "preprocess", *sizes, "--output", tmp_path / "pre.json")
    assert finished.returncode == 0, finished.stderr
    result = read_json(tmp_path / "pre.json")
    assert result["settings"]["characters"] == 20000
    assert result["measured"]["documents"] == 5
    ratio = result["ratios"]["speed_vs_tokenizer"]
    assert 0 < ratio < 2
    assert f"speed_vs_tokenizer: {ratio:.3f}" in finished.stdout.splitlines()
    assert 1 <= result["ratios"]["tokenized_vs_kept"] < 1.5
    low, _, high = result["measured"]["mix_tokens_estimated"]
    assert low <= result["measured"]["mix_tokens_kept"] <= high
    environment = result["environment"]
    assert environment["command"].startswith("python -m benchmarks preprocess --characters 20000")
    assert environment["threads"] <= environment["cores"]
    table = (tmp_path / "pre.md").read_text()
    assert environment["date"] in table
    assert f"{ratio:.4g} " in table


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    finished = run(
        "-m", "benchmarks", "preprocess", "--output", tmp_path / "pre.json", "--tokenizer", tmp_path
    )
    assert finished.returncode == 2
    assert ": tokenizer: cannot be read; give tokenizer.json" in finished.stderr
    assert not (tmp_path / "pre.json").exists()


def test_actions_take_turns() -> None:
    order: list[str] = []
    actions = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = in_turns(actions, 2)
    assert order == ["b", "a", "a", "b"]
    assert set(seconds) == {"a", "b"}


def test_processor_time_leaves_waiting_out() -> None:
    seconds = in_turns({"wait": lambda: time.sleep(0.2)}, 1, clock=time.process_time)
    assert seconds["wait"] < 0.1
