"""`longrope2 search` as users launch it: workers, SIGKILL, bad input."""

import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.processes import torchrun
from tests.search.command import SEARCH, kill, refused, results, search

SETTINGS = (
    "--target-length",
    "256",
    "--population",
    "12",
    "--iterations",
    "3",
    "--samples",
    "4",
    "--seed",
    "5",
)


def _arguments(root: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--load", str(root / "megatron"), "--books", str(root / "books"), "--output", str(output)),
        *SETTINGS,
        *("--held-out-samples", "6", "--needle-depths", "0", "0.5"),
        *more,
    ]


@pytest.fixture(scope="module")
def one_worker(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("search") / "one"
    search(*_arguments(tiny_root, output))
    return output


def test_results_are_whole(one_worker: Path) -> None:
    report, factors = results(one_worker)
    assert report["finished"]
    assert len(report["history"]) == 4
    assert report["cost"]["candidates"] == 12 + 3 * 6
    assert report["cost"]["evaluations"] + report["cost"]["pruned"] == 30 * 4
    assert factors["method"] == "longrope2"
    assert factors["provenance"]["perplexity"] == report["perplexity"]
    assert set(report["held_out"]["comparisons"]) >= {"none", "pi", "ntk", "yarn", "yarn+attention"}
    lines = (one_worker / "factors.csv").read_text().split()
    assert [float(line) for line in lines] == factors["long_factor"]
    for name in ("evolution.png", "factors.png"):
        assert (one_worker / name).stat().st_size > 5000
    assert "| yarn " in (one_worker / "search.md").read_text()


def test_tensorboard_has_every_generation(one_worker: Path) -> None:
    log = EventAccumulator(str(one_worker / "tensorboard"))
    log.Reload()
    report, _ = results(one_worker)
    best = log.Scalars("search/best_perplexity")
    assert [event.step for event in best] == [1, 2, 3, 4]
    for event, generation in zip(best, report["history"], strict=True):
        assert event.value == pytest.approx(math.exp(generation["best_score"]), rel=1e-4)
    assert log.Scalars("search/evaluations")[-1].value == report["cost"]["evaluations"]


def test_two_workers_find_what_one_finds(tiny_root: Path, tmp_path: Path, one_worker: Path) -> None:
    output = tmp_path / "two"
    torchrun(2, *SEARCH, *_arguments(tiny_root, output))
    one, two = results(one_worker), results(output)
    assert two[1]["long_factor"] == one[1]["long_factor"]
    assert two[0]["history"] == one[0]["history"]
    assert two[0]["held_out"] == one[0]["held_out"]


def test_killed_search_continues_to_the_same_result(
    tiny_root: Path, tmp_path: Path, one_worker: Path
) -> None:
    output = tmp_path / "killed"
    kill(output, *_arguments(tiny_root, output))
    search(*_arguments(tiny_root, output))
    one, again = results(one_worker), results(output)
    assert again[1]["long_factor"] == one[1]["long_factor"]
    assert again[0]["history"] == one[0]["history"]


def test_the_authors_attention_factor_is_searched_with_and_handed_on(
    tiny_root: Path, tmp_path: Path, one_worker: Path
) -> None:
    alone = ("--iterations", "0", "--held-out-samples", "0")
    search(*_arguments(tiny_root, tmp_path / "out", *alone, "--longrope-attention-factor"))
    report, factors = results(tmp_path / "out")
    both = pytest.approx((1 + math.log(256 / 64) / math.log(64)) ** 0.5)
    assert factors["attention_factor"] == {"short": both, "long": both}
    # The same first generation under it has other scores.
    assert report["history"][0]["best_score"] != results(one_worker)[0]["history"][0]["best_score"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--load", "nowhere"), "nowhere: no Megatron checkpoint there"),
        (("--books", "nowhere.txt"), "nowhere.txt: no such file or folder"),
        (("--target-length", "64"), "target_length: 64 is not larger than original_length 64"),
        (("--population", "0"), 'Invalid value "0" for --population. Must be > 0'),
        (("--mutation-probability", "0"), 'Invalid value "0.0" for --mutation-probability. Must be > 0'),
        (("--starts", "ntk", "yern"), 'Invalid value "yern" for --starts. Choose from: "none", "pi"'),
        (("--learning-rate", "nan"), 'Invalid value "nan" for --learning-rate'),
    ],
)
def test_bad_input_is_one_line_and_status_2(tiny_root: Path, tmp_path: Path, arguments, message) -> None:
    assert message in refused(*_arguments(tiny_root, tmp_path / "out", *arguments))
    assert not (tmp_path / "out").exists()


def test_state_of_another_search_is_refused(tiny_root: Path, one_worker: Path) -> None:
    error = refused(*_arguments(tiny_root, one_worker, "--mutation-probability", "0.5"))
    assert "evolution.mutation_probability: the state is of a search with 0.3, this one has 0.5" in error


def test_dry_run_prints_the_cost_and_writes_nothing(tiny_root: Path, tmp_path: Path) -> None:
    printed = search(*_arguments(tiny_root, tmp_path / "out", "--dry-run"))
    rows = dict(line.rsplit(maxsplit=1) for line in printed.splitlines()[1:])
    assert (rows["candidates"], rows["evaluations"], rows["tokens"]) == ("30", "120", "3.072e+04")
    assert float(rows["hours"]) > 0
    assert not (tmp_path / "out").exists()
