"""Attempts at a stage: counted and recorded, and after each the verdict: done, try again, or stop."""

import datetime
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.launch.run_folder import REPORT, load_chain

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
TERMINATED = 143  # srun's exit status when ranks were ended by SIGTERM

Ending = Literal["done", "failed", "warned", "lost"]

_ITERATION = re.compile(rb"iteration\s+(\d+)/")
_TAIL = 1 << 20


@dataclass(frozen=True)
class Attempt:
    """An attempt that has ended.

    Attributes:
        job: Slurm's id.
        ending: done; failed: a command failed; warned: stopped before the time limit; lost: Slurm ended the
            ranks or took the job away (preemption, a dead node, `scontrol requeue`).
        status: exit status of the commands.
        step: how far it got, as `progress` counts it.
    """

    number: int
    job: str
    ending: Ending
    status: int
    step: int
    seconds: float = 0.0


class Verdict(NamedTuple):
    """What happens next, and why."""

    outcome: Literal["done", "again", "stopped"]
    reason: str


def judge(attempt: Attempt, earlier: Sequence[Attempt], limit: int) -> Verdict:
    """Decide after an attempt.

    Args:
        earlier: the attempts of the same job before it.
        limit: attempts that a job may have.
    """
    if attempt.ending == "done":
        return Verdict("done", f"done in attempt {attempt.number}")
    if attempt.ending == "failed" and attempt.status == 2:
        return Verdict("stopped", "bad input (exit status 2); see the log, fix it and submit with --resume")
    at = f"at step {attempt.step}"
    same = [one for one in earlier if (one.ending, one.step) == (attempt.ending, attempt.step)]
    if same and attempt.ending == "failed":
        numbers = f"attempts {same[-1].number} and {attempt.number}"
        return Verdict("stopped", f"failed twice {at} ({numbers}): not a matter of luck; see the ranks' logs")
    if same and attempt.ending == "warned":
        return Verdict("stopped", f"warned twice {at}: the time limit is too short to get further")
    if len(earlier) + 1 >= limit:
        return Verdict("stopped", f"{limit} attempts, the last one {attempt.ending} {at}")
    return Verdict("again", f"attempt {attempt.number} {attempt.ending} {at}; the job is requeued")


def begin(run: Path, stage: str) -> int:
    """Record that an attempt begins, and give its number.

    The attempt before it is recorded as lost if Slurm cut it short.

    Args:
        run: The run folder of the chain.
        stage: The stage that is attempted.

    Raises:
        InputError: the job has had all its attempts.
    """
    _, settings = load_chain(run)
    folder = run / "stages" / stage
    job = os.environ["SLURM_JOB_ID"]
    begun = _folders(folder)
    if begun and not (begun[-1] / "end.json").exists():
        before, number = read_json(begun[-1] / "begin.json"), len(begun)
        _write_end(folder, Attempt(number, before["job"], "lost", -1, progress(run, stage, number)))
    past = [one for one in attempts(folder) if one.job == job]
    if len(past) >= settings.slurm.attempts:
        reason = f"{len(past)} attempts, the last one {past[-1].ending} at step {past[-1].step}"
        _report(run, stage, Verdict("stopped", reason))
        raise InputError(f"{stage}: {reason}")
    write_json(
        folder / f"attempt-{len(begun) + 1}" / "begin.json",
        {"job": job, "started": _now().isoformat(), "nodes": os.environ.get("SLURM_JOB_NODELIST")},
    )
    return len(begun) + 1


def end(run: Path, stage: str, number: int, *, status: int, warned: bool) -> int:
    """Record how an attempt ended, say on stderr what happens next, and give the exit status for it.

    The status is 0 when the stage is done, 75 when the job belongs back into the queue, or else the one that
    the job ends with.

    Args:
        run: The run folder of the chain.
        stage: The stage that was attempted.
        number: The number of the attempt.
        status: The exit status of the stage's commands.
        warned: Whether the job was told to stop.
    """
    _, settings = load_chain(run)
    folder = run / "stages" / stage
    started = read_json(folder / f"attempt-{number}/begin.json")
    seconds = (_now() - datetime.datetime.fromisoformat(started["started"])).total_seconds()
    own = _rank_statuses(folder / f"attempt-{number}")
    # srun gives the highest status of all ranks: that of those that were ended because one had failed.
    status = 2 if 2 in own else status
    ending: Ending = "failed" if status else "done"
    if warned and status != 2 and (status or stage == "train"):
        # Training that was told to stop ends with status 0; if it was complete, the next one ends at once.
        ending = "warned"
    elif status == TERMINATED and not own:
        ending = "lost"
    attempt = Attempt(number, started["job"], ending, status, progress(run, stage, number), seconds)
    earlier = [one for one in attempts(folder) if one.job == attempt.job and one.number < number]
    verdict = judge(attempt, earlier, settings.slurm.attempts)
    _write_end(folder, attempt)
    _report(run, stage, verdict)
    print(f"{stage}: {verdict.outcome}: {verdict.reason}", file=sys.stderr, flush=True)
    return {"done": 0, "again": TRY_AGAIN, "stopped": status or 1}[verdict.outcome]


def attempts(folder: Path) -> list[Attempt]:
    """The attempts at a stage that have ended, in order."""
    ends = [path / "end.json" for path in _folders(folder)]
    return [Attempt(**read_json(path)) for path in ends if path.exists()]


def progress(run: Path, stage: str, number: int) -> int:
    """The step that an attempt got to.

    Training by its ranks' logs or what is saved, search by its state, preprocessing by its finished shards,
    and every other stage by its finished commands.
    """
    if stage == "search":
        path = run / "search" / "state.json"
        cost = read_json(path)["state"]["cost"] if path.exists() else {}
        return int(cost.get("evaluations", 0) + cost.get("steps", 0))
    if stage == "preprocess":
        return sum(len(list(run.glob(place))) for place in (".data.shards/*/", "data/.*.shards/*/"))
    if stage != "train":
        return len(list((run / "stages" / stage).glob("command-*.done")))
    logged = [_last_iteration(log) for log in (run / "stages/train" / f"attempt-{number}").glob("rank-*.log")]
    tracker = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    saved = tracker.read_text().strip() if tracker.exists() else ""
    return max(logged, default=0) or (int(saved) if saved.isdecimal() else 0)


def _last_iteration(log: Path) -> int:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL))
        found = _ITERATION.findall(stream.read())
    return int(found[-1]) if found else 0


def _rank_statuses(attempt: Path) -> set[int]:
    """Exit statuses of the ranks that failed by themselves; slurm/rank.sh writes them."""
    return {int(file.read_text()) for file in attempt.glob("rank-*.status")}


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("attempt-*"), key=lambda path: int(path.name.removeprefix("attempt-")))


def _write_end(folder: Path, attempt: Attempt) -> None:
    write_json(folder / f"attempt-{attempt.number}" / "end.json", asdict(attempt))


def _report(run: Path, stage: str, verdict: Verdict) -> None:
    """Write the stage's report, which other programs read."""
    chain, _ = load_chain(run)
    folder = run / "stages" / stage
    past = attempts(folder)
    environment = folder / f"attempt-{past[-1].number}" / "environment.json" if past else None
    report: dict[str, Any] = {
        "stage": stage,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "commands": chain["commands"][stage],
        "git_commit": chain["git_commit"],
        "seconds": sum(one.seconds for one in past),
        "attempts": [asdict(one) for one in past],
        "environment": read_json(environment) if environment and environment.exists() else None,
    }
    write_json(folder / REPORT, report)


def _now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()
