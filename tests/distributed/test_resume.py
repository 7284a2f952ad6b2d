"""A run that is killed at a random step and started again gives what one that was never killed gives."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_longrope2.files import write_json
from tests.processes import ROOT, Processes, longrope2, torchrun
from tests.training.conftest import OPTIONS

LOSSES = ("lm loss", "short window loss", "long window loss", "short window tokens", "grad-norm")
STEPS = 6

# In the place of the library: what is logged, a line a call.
WANDB = """
import json, os
from unittest.mock import MagicMock

def __getattr__(name): return MagicMock()

def log(values, step=None, **_):
    plain = {name: float(value) for name, value in values.items() if hasattr(value, "__float__")}
    with open(os.environ["WANDB_LOG"], "a") as stream:
        stream.write(json.dumps([plain, step]) + "\\n")
"""
TRAIN = (sys.executable, "-u", "-m", "megatron_longrope2", "train")
WORKER = Path(__file__).with_name("resume_worker.py")
LAYOUTS = {
    "TP2 SP": ["--tensor-model-parallel-size", "2", "--sequence-parallel"],
    "PP2": ["--pipeline-model-parallel-size", "2"],
    "CP2": ["--context-parallel-size", "2"],
    "DP2": [],
}

pytestmark = pytest.mark.slow


def options(pools: Path, folder: Path, name: str) -> list[str]:
    return [
        *OPTIONS,
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


def kill_at(step: int, options: list[str]) -> None:
    process = Processes("-m", "megatron_longrope2", "train", *options)
    while f"iteration {step:8d}/" not in process.output:
        assert process.running, process.wait().stderr[-3000:]
        time.sleep(0.01)
    process.kill()
    assert process.wait().returncode == -9


@pytest.fixture(scope="module")
def whole(pools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped: `whole`, `whole-log`, and what W&B was given in `wandb.jsonl`."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "fake").mkdir()
    (folder / "fake/wandb.py").write_text(WANDB)
    logged = ("--tensorboard-dir", str(folder / "whole-log"), "--wandb-project", "p", "--wandb-exp-name", "n")
    path = f"{folder}/fake:{os.environ.get('PYTHONPATH', '')}"
    with (folder / "whole.txt").open("w") as stream:
        subprocess.run(
            [*TRAIN, *options(pools, folder, "whole"), *logged],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "WANDB_LOG": f"{folder}/wandb.jsonl"},
            cwd=ROOT,
            check=True,
            timeout=600,
        )
    return folder


def test_weights_and_biases_gets_what_tensorboard_gets(whole: Path) -> None:
    given: dict[str, dict[int, float]] = {name: {} for name in LOSSES}
    for line in (whole / "wandb.jsonl").read_text().splitlines():
        values, step = json.loads(line)
        for name in given.keys() & values.keys():
            given[name][step] = values[name]
    for name, expected in losses(whole / "whole-log").items():
        assert given[name] == pytest.approx(expected), name


def test_killed_and_resumed(pools: Path, whole: Path, tmp_path: Path) -> None:
    step = random.SystemRandom().randint(2, STEPS - 1)
    print(f"killed at step {step}")
    killed = options(pools, tmp_path, "killed")
    kill_at(step, killed)
    tracker = tmp_path / "killed/latest_checkpointed_iteration.txt"
    saved = int(tracker.read_text()) if tracker.exists() else 0
    finished = longrope2("train", *killed, "--tensorboard-dir", tmp_path / "resumed-log")
    assert finished.returncode == 0, finished.stderr[-3000:]

    expected, resumed = losses(whole / "whole-log"), losses(tmp_path / "resumed-log")
    for name in LOSSES:
        assert list(resumed[name]) == list(range(saved + 1, STEPS + 1))
        assert resumed[name] == {i: expected[name][i] for i in resumed[name]}, name
    folders = whole / "whole", tmp_path / "killed"
    weights = [saved_tensors(folder / f"iter_{STEPS:07d}") for folder in folders]
    assert len(weights[0]) > 20
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_resumed_in_another_layout(pools: Path, whole: Path, tmp_path: Path) -> None:
    """Saved by one process, resumed by two: the same losses, so no sample is read twice and none left out."""
    runs = []
    for name, layout in LAYOUTS.items():
        log = ("--tensorboard-dir", str(tmp_path / f"{name}-log"))
        start = ("--load", str(whole / "whole"), "--ckpt-step", "2")
        runs.append([*options(pools, tmp_path, name), *start, "--save-interval", "100", *log, *layout])
    write_json(tmp_path / "runs.json", runs)
    torchrun(2, WORKER, tmp_path / "runs.json")
    expected = losses(whole / "whole-log")
    for name in LAYOUTS:
        resumed = losses(tmp_path / f"{name}-log")
        for loss in LOSSES:
            wanted = {step: value for step, value in expected[loss].items() if step > 2}
            assert resumed[loss] == pytest.approx(wanted, rel=1e-5), f"{name}: {loss}"


def test_a_complete_run_started_again_ends_at_once(pools: Path, whole: Path, tmp_path: Path) -> None:
    finished = longrope2("train", *options(pools, tmp_path, "again"), "--load", whole / "whole")
    assert finished.returncode == 0, finished.stderr[-3000:]
    last = f"iteration {STEPS:8d}/"
    assert last in (whole / "whole.txt").read_text()
    assert last not in finished.stdout
