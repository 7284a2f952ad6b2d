"""bf16 training through the real command, and a run that is resumed on the other kind of machine."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_longrope2.checkpoint.conversion import import_hf
from megatron_longrope2.checkpoint.settings import ImportSettings
from megatron_longrope2.data.pools import write_documents
from megatron_longrope2.rope import make_factors
from tests.checkpoint.tiny_models import ORIGINAL, TARGET, VOCAB, save_model
from tests.gpu.conftest import python

STEPS, MIDDLE = 6, 3
OPTIONS = f"""
    -m megatron_longrope2 train --bf16 --seq-length {TARGET} --micro-batch-size 1 --global-batch-size 4
    --train-iters {STEPS} --lr 1e-3 --lr-decay-style constant --log-interval 1 --save-interval {MIDDLE}
    --ckpt-format torch_dist --no-load-rng --repeat-data --attention-dropout 0 --hidden-dropout 0
""".split()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, and the pools short and long."""
    folder = tmp_path_factory.mktemp("inputs")
    make_factors(
        "ntk", rope_base=10000.0, rotary_dim=16, original_length=ORIGINAL, target_length=TARGET
    ).save(folder / "factors.json")
    save_model(folder / "hf")
    import_hf(ImportSettings(folder / "hf", folder / "base", rope_factors=folder / "factors.json"))
    rng = np.random.default_rng(0)
    for pool, low, high in (("short", 10, ORIGINAL), ("long", ORIGINAL + 1, 400)):
        documents = (rng.integers(0, VOCAB, int(length)) for length in rng.integers(low, high, 100))
        write_documents(folder / pool, documents, vocab_size=VOCAB)
    return folder


def train(device: str, inputs: Path, save: Path, *options: object) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step that was logged."""
    without_engine = device == "cpu" or not importlib.util.find_spec("transformer_engine")
    pools = [word for pool in ("short", "long") for word in ("--pool", pool, "1", str(inputs / pool))]
    finished = python(
        *(*OPTIONS, *pools, "--save", save, *options),
        *(("--transformer-impl", "local") if without_engine else ()),
        **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}),
    )
    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output[-5000:]
    logged = re.findall(r"iteration +(\d+)/.*?lm loss: (\S+) .*?grad norm: (\S+) ", output)
    return {int(step): (float(loss), float(norm)) for step, loss, norm in logged}


@pytest.fixture(scope="module")
def runs(inputs: Path, megatron_on: str) -> dict[str, dict[int, tuple[float, float]]]:
    """The whole run on each device that is here; its checkpoints are in `inputs`/DEVICE."""
    start = ("--pretrained-checkpoint", inputs / "base")
    return {device: train(device, inputs, inputs / device, *start) for device in {megatron_on, "cpu"}}


def test_steps_are_finite(runs: dict[str, dict[int, tuple[float, float]]], megatron_on: str) -> None:
    steps = runs[megatron_on]
    assert list(steps) == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) and value > 0 for pair in steps.values() for value in pair)


def test_devices_agree(runs: dict[str, dict[int, tuple[float, float]]], megatron_on: str) -> None:
    for step, (loss, _) in runs[megatron_on].items():
        assert loss == pytest.approx(runs["cpu"][step][0], rel=1e-2)


@pytest.mark.parametrize("to_cpu", [True, False], ids=["to the CPU", "from the CPU"])
def test_a_run_moves(
    runs: dict[str, dict[int, tuple[float, float]]],
    inputs: Path,
    megatron_on: str,
    to_cpu: bool,
    tmp_path: Path,
) -> None:
    """Weights, optimizer, schedule and data position continue as if the run had stayed."""
    if megatron_on == "cpu" and not to_cpu:
        pytest.skip("both devices are the CPU: one direction shows both")
    first, second = (megatron_on, "cpu") if to_cpu else ("cpu", megatron_on)
    moved = train(second, inputs, tmp_path / "save", "--load", inputs / first, "--ckpt-step", MIDDLE)
    assert list(moved) == list(range(MIDDLE + 1, STEPS + 1))
    # The last step's: upstream's log averages the first two after a start.
    tolerance = 1e-6 if first == second else 1e-2
    assert moved[STEPS][0] == pytest.approx(runs[first][STEPS][0], rel=tolerance)
