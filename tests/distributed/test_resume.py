"""A run that is killed at a random step and started again gives what one that was never killed gives."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.launch import ROOT
from tests.training.conftest import OPTIONS

LOSSES = ("lm loss", "short window loss", "long window loss", "short window tokens", "grad-norm")
STEPS = 6

pytestmark = pytest.mark.slow


def command(pools: Path, folder: Path, name: str) -> list[str]:
    return [
        *(sys.executable, "-u", "-m", "megatron_longrope2.pretrain", *OPTIONS),
        *("--rope-factors", str(pools / "factors.json"), "--log-interval", "1"),
        *("--pool", "short", "1", str(pools / "short"), "--pool", "long", "1", str(pools / "long")),
        *("--valid-pool", "long", "1", str(pools / "long"), "--eval-iters", "1", "--eval-interval", "3"),
        *("--save", str(folder / name), "--load", str(folder / name), "--save-interval", "2"),
    ]


def losses(folder: Path) -> dict[str, dict[int, float]]:
    """Losses by step, to the last bit of float32."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in LOSSES}


def saved_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer states."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        saved = dist_checkpointing.load_plain_tensors(str(checkpoint))
    finally:
        torch.distributed.destroy_process_group()
    return {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}


def run(options: list[str], log: Path) -> None:
    with log.open("w") as stream:
        subprocess.run(options, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, check=True, timeout=600)


def kill_at(step: int, options: list[str]) -> None:
    process = subprocess.Popen(
        options, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    for line in process.stdout:
        if f"iteration {step:8d}/" in line:
            break
    process.kill()
    assert process.wait() == -9


def test_killed_and_resumed(pools: Path, tmp_path: Path) -> None:
    whole = command(pools, tmp_path, "whole")
    run([*whole, "--tensorboard-dir", str(tmp_path / "whole-log")], tmp_path / "whole.txt")

    step = random.SystemRandom().randint(2, STEPS - 1)
    print(f"killed at step {step}")
    killed = command(pools, tmp_path, "killed")
    kill_at(step, killed)
    tracker = tmp_path / "killed/latest_checkpointed_iteration.txt"
    saved = int(tracker.read_text()) if tracker.exists() else 0
    run([*killed, "--tensorboard-dir", str(tmp_path / "resumed-log")], tmp_path / "resumed.txt")

    expected, resumed = losses(tmp_path / "whole-log"), losses(tmp_path / "resumed-log")
    for name in LOSSES:
        assert list(resumed[name]) == list(range(saved + 1, STEPS + 1))
        assert resumed[name] == {i: expected[name][i] for i in resumed[name]}, name
    weights = [saved_tensors(tmp_path / name / f"iter_{STEPS:07d}") for name in ("whole", "killed")]
    assert len(weights[0]) > 20
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_complete_run_started_again_ends_at_once(pools: Path, tmp_path: Path) -> None:
    options = command(pools, tmp_path, "complete")
    run([*options, "--train-iters", "2", "--lr-decay-iters", "6"], tmp_path / "first.txt")
    run([*options, "--train-iters", "2", "--lr-decay-iters", "6"], tmp_path / "again.txt")
    assert "iteration        2/" in (tmp_path / "first.txt").read_text()
    assert "iteration        2/" not in (tmp_path / "again.txt").read_text()
