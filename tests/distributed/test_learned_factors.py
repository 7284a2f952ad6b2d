"""`--train-rope-factors`: factors move, travel in the checkpoint, and resume, in any layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron.core import dist_checkpointing

from megatron_longrope2.files import write_json
from tests.processes import torchrun
from tests.training.conftest import OPTIONS

STEPS = 4

pytestmark = pytest.mark.slow


LAYOUTS = {
    "TP2 SP": ("--tensor-model-parallel-size", "2", "--sequence-parallel"),
    "PP2": ("--pipeline-model-parallel-size", "2"),
    "CP2": ("--context-parallel-size", "2"),
}
WORKER = Path(__file__).with_name("resume_worker.py")

Train = Callable[..., list[Any]]


def _train(pools: Path, folder: Path, processes: int, runs: dict[str, tuple[object, ...]]) -> list[Any]:
    """Runs in one job, by the names of their folders; the arguments in the last checkpoint of each."""
    options = [
        *(*OPTIONS, "--rope-factors", pools / "factors.json", "--save-interval", "2"),
        *("--pool", "short", "1", pools / "short", "--pool", "long", "1", pools / "long"),
    ]
    lines = [[*options, "--save", folder / name, *more] for name, more in runs.items()]
    write_json(folder / "runs.json", [list(map(str, line)) for line in lines])
    torchrun(processes, WORKER, folder / "runs.json")
    return [_saved(folder / name) for name in runs]


def _saved(folder: Path) -> Any:
    step = int((folder / "latest_checkpointed_iteration.txt").read_text())
    return dist_checkpointing.load_common_state_dict(str(folder / f"iter_{step:07d}"))["args"]


@pytest.fixture(scope="module")
def train(pools: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train from weights that are the same for every layout."""
    start = tmp_path_factory.mktemp("base")
    _train(pools, start, 1, {"base": ("--train-iters", "1")})
    learning = ("--train-rope-factors", "--rope-factors-lr", "0.01", "--train-iters", STEPS)

    def train_(folder: Path, processes: int, runs: dict[str, tuple[object, ...]]) -> list[Any]:
        begin = ("--pretrained-checkpoint", start / "base", *learning)
        return _train(
            pools,
            folder,
            processes,
            {name: (*begin, "--load", folder / name, *more) for name, more in runs.items()},
        )

    return train_


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("learned"), 1, {"whole": ()})[0]


@pytest.fixture(scope="module")
def split(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same in every layout of two processes."""
    return dict(zip(LAYOUTS, train(tmp_path_factory.mktemp("split"), 2, LAYOUTS), strict=True))


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
    (stopped,) = train(tmp_path, 1, {"part": ("--exit-interval", "2")})
    assert stopped.longrope2_learned["step"] == 2
    (resumed,) = train(tmp_path, 1, {"part": ()})
    assert resumed.longrope2_learned == whole.longrope2_learned
    assert resumed.longrope2_factors == whole.longrope2_factors


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_learns_what_one_process_learns(split: dict[str, Any], whole: Any, layout: str) -> None:
    found = split[layout]
    assert found.longrope2_factors["long_factor"] == pytest.approx(
        whole.longrope2_factors["long_factor"], rel=1e-4
    )
    wanted = whole.longrope2_learned["moments"]["0"]["exp_avg"]
    assert found.longrope2_learned["moments"]["0"]["exp_avg"] == pytest.approx(
        wanted, rel=1e-3, abs=1e-3 * max(map(abs, wanted))
    )
