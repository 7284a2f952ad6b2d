"""The benchmarks run, in small, and write what they promise. Speed itself is not tested here."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_longrope2.benchmarks import alternate, benchmarks
from megatron_longrope2.files import read_json

ROOT = Path(__file__).parents[2]


def run(name: str, output: Path, *options: object) -> dict:
    subprocess.run(
        [sys.executable, "-m", "tools.benchmark", name, "--output", output, *map(str, options)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    return read_json(output)


@pytest.mark.parametrize("name", sorted(benchmarks()))
def test_every_benchmark_describes_itself(name: str) -> None:
    benchmark = benchmarks()[name]
    assert (benchmark.__doc__ or "").strip()
    assert callable(benchmark.add_arguments)
    assert callable(benchmark.measure)


def test_actions_take_turns() -> None:
    order: list[str] = []
    actions = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = alternate(actions, 2)
    assert order == ["b", "a", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_processor_time_leaves_waiting_out() -> None:
    seconds = alternate({"wait": lambda: time.sleep(0.2)}, 1, clock=time.process_time)
    assert seconds["wait"][0] < 0.1


def test_train(tmp_path: Path) -> None:
    small = ("--length", 64, "--original-length", 16, "--num-layers", 1, "--hidden-size", 64, "--repeats", 1)
    result = run("train", tmp_path / "train.json", *small)
    assert result["name"] == "train"
    assert result["settings"]["length"] == 64
    assert result["ratios"]["step_time_vs_upstream"] > 0
    losses = result["measured"]["losses"]
    # Equal weights, and plain RoPE in the short window: both do the same work.
    assert losses["short"]["ours"] == pytest.approx(losses["short"]["upstream"], rel=1e-6)


def test_preprocess(tmp_path: Path) -> None:
    result = run("preprocess", tmp_path / "pre.json", "--characters", 20000, "--repeats", 1)
    assert result["settings"]["documents"] == 5
    assert 0 < result["ratios"]["speed_vs_tokenizer"] < 2


def test_preprocess_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run("preprocess", tmp_path / "pre.json", "--tokenizer", tmp_path)
    assert failure.value.returncode == 2
    assert b"holds neither tokenizer.json nor tokenizer.model" in failure.value.stderr
    assert not (tmp_path / "pre.json").exists()
