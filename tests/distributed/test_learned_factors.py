"""`--train-rope-factors`: factors move, travel in the checkpoint, and resume, in any layout."""

from pathlib import Path
from typing import Any

import pytest
from megatron.core import dist_checkpointing

from tests.distributed.launch import torchrun
from tests.training.conftest import OPTIONS

STEPS = 4

pytestmark = pytest.mark.slow


def _train(pools: Path, folder: Path, processes: int, *more: str) -> Any:
    """The arguments that the last checkpoint holds."""
    torchrun(
        processes,
        *("-m", "megatron_longrope2.pretrain", *OPTIONS, "--rope-factors", pools / "factors.json"),
        *("--pool", "short", "1", pools / "short", "--pool", "long", "1", pools / "long"),
        *("--train-rope-factors", "--rope-factors-lr", "0.01", "--save", folder, "--load", folder),
        *("--train-iters", str(STEPS), "--save-interval", "2", *more),
    )
    step = int((folder / "latest_checkpointed_iteration.txt").read_text())
    return dist_checkpointing.load_common_state_dict(str(folder / f"iter_{step:07d}"))["args"]


@pytest.fixture(scope="module")
def whole(pools: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _train(pools, tmp_path_factory.mktemp("learned") / "whole", 1)


def test_checkpoint_holds_the_learned_factors(whole: Any) -> None:
    learned, state = whole.longrope2_factors, whole.longrope2_learned
    assert learned["method"] == "longrope2-learned"
    assert learned["provenance"]["trained_steps"] == state["step"] == STEPS
    pairs = zip(learned["long_factor"], state["start"]["long_factor"], strict=True)
    moved = [abs(after - before) for after, before in pairs]
    assert moved[0] == 0
    assert min(moved[1:]) > 0
    assert learned["short_factor"] == [1.0] * len(moved)


def test_stopped_and_resumed(pools: Path, tmp_path: Path, whole: Any) -> None:
    stopped = _train(pools, tmp_path / "part", 1, "--exit-interval", "2")
    assert stopped.longrope2_learned["step"] == 2
    resumed = _train(pools, tmp_path / "part", 1)
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
    pools: Path, tmp_path: Path, whole: Any, layout: tuple[str, ...]
) -> None:
    split = _train(pools, tmp_path / "split", 2, *layout)
    assert split.longrope2_factors["long_factor"] == pytest.approx(
        whole.longrope2_factors["long_factor"], rel=1e-4
    )
    for name, moment in split.longrope2_learned["moments"]["0"].items():
        wanted = whole.longrope2_learned["moments"]["0"][name]
        if name == "exp_avg":
            largest = max(map(abs, wanted))
            assert moment == pytest.approx(wanted, rel=1e-2, abs=1e-3 * largest)
