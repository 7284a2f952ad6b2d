"""A rehearsal finds the memory that a real training step takes, and its own mistakes of input."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.processes import ROOT, longrope2, run, torchrun

WORKER = Path(__file__).with_name("training_worker.py")
RECOMPUTE = {
    "MLPs": "--recompute-granularity selective --recompute-modules mlp",
    "full": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
}
LAYOUTS = {
    "TP2": "--tensor-model-parallel-size 2 --sequence-parallel",
    "CP2, MLPs": f"--context-parallel-size 2 {RECOMPUTE['MLPs']}",
    "PP2": "--pipeline-model-parallel-size 2",
    "DP2, full": f"--use-distributed-optimizer --overlap-grad-reduce {RECOMPUTE['full']}",
}


def test_the_peak_is_that_of_a_real_step(tmp_path: Path) -> None:
    layouts = {name: words.split() for name, words in LAYOUTS.items()}
    done = run(WORKER, tmp_path / "rehearsed", json.dumps(list(layouts.values())))
    assert done.returncode == 0, done.stderr[-4000:]
    rehearsed = json.loads((tmp_path / "rehearsed").read_text())
    ratios = defaultdict(list)
    for name, words in layouts.items():
        torchrun(2, WORKER, tmp_path / name, *words)
        while rehearsed and (not ratios[name] or rehearsed[0][1]):
            _, rank, peak, _ = rehearsed.pop(0)
            ratios[name].append(peak / json.loads((tmp_path / f"{name}.{rank}").read_text()))
    assert not rehearsed
    assert all(abs(ratio - 1) < 0.05 for found in ratios.values() for ratio in found), dict(ratios)


def test_what_does_not_fit_is_not_submitted() -> None:
    done = longrope2("submit", ROOT / "slurm/tiny_cpu.toml", "--rehearse", "--memory", "0.02")
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert re.search(r"tiny_cpu.toml: does not fit: train, rank 0 .* of 0.02 GiB.*: use a larger --", message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "llama3-8b"], "SETTINGS: name the settings file"),
        (["--command", "train"], "--model: is missing"),
        (["--model", "llama3-9b", "--command", "train"], "llama3-9b: neither a folder nor a known model"),
        (["--model", "llama3-8b", "--command", "export"], "export: cannot be rehearsed"),
        (
            [
                "--model",
                "llama3-8b",
                "--gpus",
                "6",
                "--command",
                "train",
                "--tensor-model-parallel-size",
                "4",
            ],
            "train: 6 ranks are not a multiple of 4",
        ),
        (
            ["--model", "llama3-8b", "--command", "train", "--context-parallel-size", "two"],
            "argument --context-parallel-size: invalid int value: 'two'",
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str) -> None:
    done = longrope2("rehearse", *words)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1], done.stderr
