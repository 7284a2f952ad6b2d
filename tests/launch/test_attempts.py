"""What happens after an attempt."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.launch.attempts import Attempt, attempts, begin, end, judge, progress
from tests.launch.conftest import Write

endings = st.tuples(
    st.sampled_from(["failed", "warned", "lost"]), st.integers(0, 5), st.sampled_from([1, 2, 137])
)


def attempt(number: int, ending: str, step: int, status: int = 1) -> Attempt:
    return Attempt(number, "7", ending, status, step)  # type: ignore[arg-type]


@given(st.lists(endings, min_size=60, max_size=60), st.integers(1, 50))
def test_a_job_always_ends(history: list[tuple[str, int, int]], limit: int) -> None:
    earlier: list[Attempt] = []
    for number, (ending, step, status) in enumerate(history, start=1):
        current = attempt(number, ending, step, status)
        verdict = judge(current, earlier, limit)
        if verdict.outcome == "stopped":
            break
        assert verdict.outcome == "again"
        assert status != 2 or ending != "failed"
        # Bad luck in different places, or Slurm's doing: none of it is held against the job.
        assert ending == "lost" or (ending, step) not in [(one.ending, one.step) for one in earlier]
        earlier.append(current)
    assert len(earlier) < limit


def test_verdicts() -> None:
    assert judge(attempt(1, "done", 9, 0), [], 1).outcome == "done"
    first = attempt(1, "failed", 40)
    assert judge(first, [], 5).outcome == "again"
    assert judge(attempt(2, "failed", 60), [first], 5).outcome == "again"
    again = judge(attempt(2, "failed", 40), [first], 5)
    assert (again.outcome, "failed twice at step 40" in again.reason) == ("stopped", True)
    assert judge(attempt(2, "warned", 40), [first], 5).outcome == "again"
    short = judge(attempt(2, "warned", 40), [attempt(1, "warned", 40)], 5)
    assert "the time limit is too short" in short.reason


@pytest.fixture
def run(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as `submit` leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    write().rename(folder / "settings.toml")
    chain: dict[str, object] = {
        "base": str(tmp_path),
        "commands": {"train": [], "search": []},
        "git_commit": None,
        "jobs": {},
    }
    write_json(folder / "chain.json", chain)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return folder


def log(run: Path, number: int, iteration: int) -> None:
    text = (
        f"x\n [2026] iteration      {iteration - 1}/  100 | a\n [2026] iteration  {iteration:7}/  100 | a\n"
    )
    (run / f"stages/train/attempt-{number}/rank-3.log").write_text(text)


def test_records(run: Path) -> None:
    assert begin(run, "train") == 1
    log(run, 1, 12)
    # Slurm took the node; nobody could write an end.
    assert begin(run, "train") == 2
    log(run, 2, 20)
    assert end(run, "train", 2, status=0, warned=True) == 75
    assert begin(run, "train") == 3
    log(run, 3, 33)
    assert end(run, "train", 3, status=137, warned=False) == 75
    assert begin(run, "train") == 4
    log(run, 4, 33)
    assert end(run, "train", 4, status=137, warned=False) == 137
    report = read_json(run / "stages/train/report.json")
    assert [(one["ending"], one["step"]) for one in report["attempts"]] == [
        ("lost", 12),
        ("warned", 20),
        ("failed", 33),
        ("failed", 33),
    ]
    assert "attempts 3 and 4" in report["reason"]


@pytest.mark.parametrize(
    ("status", "ranks", "warned", "ending", "code"),
    [
        # One rank found bad input, the others were ended for it: srun's status is theirs.
        (143, {1: 2}, False, "failed", 2),
        (137, {0: 143, 1: 2}, True, "failed", 2),
        (143, {5: 137}, False, "failed", 75),
        # No rank failed by itself: Slurm ended them all.
        (143, {}, False, "lost", 75),
        (143, {}, True, "warned", 75),
    ],
)
def test_what_ended_the_ranks(
    run: Path, status: int, ranks: dict[int, int], warned: bool, ending: str, code: int
) -> None:
    begin(run, "search")
    for rank, own in ranks.items():
        (run / f"stages/search/attempt-1/rank-{rank}.status").write_text(f"{own}\n")
    assert end(run, "search", 1, status=status, warned=warned) == code
    assert attempts(run / "stages/search")[0].ending == ending


def test_attempts_are_bounded_even_if_slurm_ends_each(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 5):
        assert begin(run, "train") == number
    with pytest.raises(InputError, match="train: 4 attempts, the last one lost at step 0"):
        begin(run, "train")
    # A new job starts counting anew.
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert begin(run, "train") == 5
    assert len(attempts(run / "stages/train")) == 4


def test_only_training_ends_well_without_being_done(run: Path) -> None:
    begin(run, "search")
    assert end(run, "search", 1, status=0, warned=True) == 0


def test_progress(run: Path) -> None:
    begin(run, "train")
    assert progress(run, "train", 1) == 0
    (run / "checkpoints").mkdir()
    (run / "checkpoints/latest_checkpointed_iteration.txt").write_text("30\n")
    assert progress(run, "train", 1) == 30
    log(run, 1, 34)
    assert progress(run, "train", 1) == 34
    assert progress(run, "search", 1) == 0
    (run / "search").mkdir()
    write_json(run / "search/state.json", {"state": {"cost": {"evaluations": 12, "steps": 3}}})
    assert progress(run, "search", 1) == 15
    for place in ("data/.web.shards/a", "data/.web.shards/b", ".data.shards/c"):
        (run / place).mkdir(parents=True)
    assert progress(run, "preprocess", 1) == 3
    (run / "stages/evaluate").mkdir()
    assert progress(run, "evaluate", 1) == 0
    (run / "stages/evaluate/command-1.done").touch()
    assert progress(run, "evaluate", 1) == 1


def test_a_record_is_read_back(run: Path) -> None:
    begin(run, "train")
    end(run, "train", 1, status=1, warned=False)
    (one,) = attempts(run / "stages/train")
    assert dataclasses.asdict(one) == read_json(run / "stages/train/attempt-1/end.json")
