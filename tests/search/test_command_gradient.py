"""`longrope2 search` --algorithm gradient as users launch it: results, two workers, SIGKILL, bad input."""

from pathlib import Path

import pytest

from megatron_longrope2.rope import make_factors
from tests.processes import torchrun
from tests.search.command import SEARCH, kill, refused, results, search

GEOMETRY = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": 64, "target_length": 256}


def _arguments(root: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--load", str(root / "megatron"), "--books", str(root / "books"), "--output", str(output)),
        *("--algorithm", "gradient", "--target-length", "256", "--steps", "10", "--batch-size", "2"),
        *("--samples", "4", "--held-out-samples", "6", "--seed", "5", *more),
    ]


@pytest.fixture(scope="module")
def one_worker(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("gradient") / "one"
    search(*_arguments(tiny_root, output))
    return output


def test_results_are_whole(one_worker: Path) -> None:
    report, factors = results(one_worker)
    assert report["finished"]
    assert factors["method"] == "longrope2-learned"
    assert factors["attention_factor"] == {"short": 1.0, "long": 1.0}
    assert report["cost"]["training_samples"] == 2 * report["cost"]["steps"]
    start = f"start: {factors['provenance']['start']}"
    assert set(report["held_out"]["comparisons"]) >= {"none", "pi", "ntk", "yarn", "yarn+attention", start}
    for name in ("learning.png", "factors.png"):
        assert (one_worker / name).stat().st_size > 5000
    assert "| training samples " in (one_worker / "search.md").read_text()


def test_two_workers_learn_what_one_learns(tiny_root: Path, tmp_path: Path, one_worker: Path) -> None:
    """To rounding: the sum of two workers' gradients is another order of additions."""
    torchrun(2, *SEARCH, *_arguments(tiny_root, tmp_path / "two"))
    one, two = results(one_worker), results(tmp_path / "two")
    assert two[1]["long_factor"] == pytest.approx(one[1]["long_factor"], rel=1e-5)


def test_killed_search_continues_to_the_same_result(
    tiny_root: Path, tmp_path: Path, one_worker: Path
) -> None:
    output = tmp_path / "killed"
    kill(output, *_arguments(tiny_root, output))
    search(*_arguments(tiny_root, output))
    one, again = results(one_worker), results(output)
    assert again[1]["long_factor"] == one[1]["long_factor"]
    assert again[0]["history"] == one[0]["history"]


def test_bad_input_is_one_line_and_status_2(tiny_root: Path, tmp_path: Path, one_worker: Path) -> None:
    other = tmp_path / "other.json"
    make_factors("yarn", **{**GEOMETRY, "rotary_dim": 32}).save(other)
    for arguments, message in (
        (_arguments(tiny_root, tmp_path / "a", "--init-factors", str(other)), "rotary_dim"),
        (_arguments(tiny_root, tmp_path / "b", "--target-length", "90000"), "books: the longest has"),
        (_arguments(tiny_root, one_worker, "--learning-rate", "0.1"), "gradient.learning_rate: the state is"),
    ):
        assert message in refused(*arguments)
