"""`--train-rope-factors`: factors move, travel in the checkpoint, and resume, in any layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron.core import dist_checkpointing

from tests.processes import torchrun
from tests.training.conftest import OPTIONS

STEPS = 4

pytestmark = pytest.mark.slow


def _pretrain(pools: Path, folder: Path, processes: int, *more: object) -> Any:
    """The arguments that the last checkpoint holds."""
    torchrun(
        processes,
        *("-m", "megatron_longrope2", "train", *OPTIONS, "--rope-factors", pools / "factors.json"),
        *("--pool", "short", "1", pools / "short", "--pool", "long", "1", pools / "long"),
        *("--save", folder, "--save-interval", "2", *more),
    )
    step = int((folder / "latest_checkpointed_iteration.txt").read_text())
    return dist_checkpointing.load_common_state_dict(str(folder / f"iter_{step:07d}"))["args"]


Train = Callable[..., Any]


@pytest.fixture(scope="module")
def train(pools: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train from weights that are the same for every layout."""
    base = tmp_path_factory.mktemp("learned") / "base"
    _pretrain(pools, base, 1, "--train-iters", "1")

    def train_(folder: Path, processes: int, *more: object) -> Any:
        learning = ("--train-rope-factors", "--rope-factors-lr", "0.01", "--train-iters", STEPS)
        start = ("--pretrained-checkpoint", base, "--load", folder)
        return _pretrain(pools, folder, processes, *start, *learning, *more)

    return train_


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("learned") / "whole", 1)


def test_checkpoint_holds_the_learned_factors(whole: Any) -> None:
    learned, state = whole.longrope2_factors, whole.longrope2_learned
    assert learned["method"] == "longrope2-learned"
    assert learned["provenance"]["trained_steps"] == state["step"] == STEPS
    pairs = zip(learned["long_factor"], state["start"]["long_factor"], strict=True)
    moved = [abs(after - before) for after, before in pairs]
    assert moved[0] == 0
    assert min(moved[1:]) > 0
    assert learned["short_factor"] == [1.0] * len(moved)


def test_stopped_and_resumed(train: Train, tmp_path: Path, whole: Any) -> None:
    stopped = train(tmp_path / "part", 1, "--exit-interval", "2")
    assert stopped.longrope2_learned["step"] == 2
    resumed = train(tmp_path / "part", 1)
    assert resumed.longrope2_learned == whole.longrope2_learned
    assert resumed.longrope2_factors == whole.longrope2_factors


@pytest.mark.parametrize(
    "layout",
    [
        ("--tensor-model-parallel-size", "2", "--sequence-parallel"),
        ("--pipeline-model-parallel-size", "2"),
        ("--context-parallel-size", "2"),
    ],
    ids=lambda layout: layout[0],
)
def test_every_layout_learns_what_one_process_learns(
    train: Train, tmp_path: Path, whole: Any, layout: tuple[str, ...]
) -> None:
    split = train(tmp_path / "split", 2, *layout)
    assert split.longrope2_factors["long_factor"] == pytest.approx(
        whole.longrope2_factors["long_factor"], rel=1e-4
    )
    wanted = whole.longrope2_learned["moments"]["0"]["exp_avg"]
    assert split.longrope2_learned["moments"]["0"]["exp_avg"] == pytest.approx(
        wanted, rel=1e-3, abs=1e-3 * max(map(abs, wanted))
    )
