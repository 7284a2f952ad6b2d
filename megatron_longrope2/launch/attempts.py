"""Attempts at a stage: counted, recorded, and after each the verdict: done, try again, or stop.

`python -m megatron_longrope2.launch.attempts begin RUN STAGE` prints the attempt's number; `... end RUN STAGE
NUMBER --status S --warned 0|1` prints what the job does next: 0 (done), 75 (back into the queue), or else the
status to end with; and says why on stderr. Only slurm/stage.sh calls it.
"""

import argparse
import datetime
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_longrope2.errors import InputError, run_main
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.launch.chain import REPORT, load_chain

TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h."""

TERMINATED = 143
"""srun's exit status when ranks were ended by SIGTERM."""

Ending = Literal["done", "failed", "warned", "lost"]

_ITERATION = re.compile(rb"iteration\s+(\d+)/")
_TAIL = 1 << 20


@dataclass(frozen=True)
class Attempt:
    """One attempt that has ended.

    Attributes:
        job: Slurm's id.
        ending: done; failed: a command's exit status; warned: stopped before the time limit; lost: Slurm
            ended the ranks or took the job (preemption, a dead node, `scontrol requeue`).
        status: exit status of the commands.
        step: training iteration, evaluations of the search, or parts of another stage, that it got to.
    """

    number: int
    job: str
    ending: Ending
    status: int
    step: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
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
        return Verdict("stopped", "bad input (exit status 2); see the log, mend it and submit with --resume")
    at = f"at step {attempt.step}"
    same = [one for one in earlier if (one.ending, one.step) == (attempt.ending, attempt.step)]
    if same and attempt.ending == "failed":
        numbers = f"attempts {same[-1].number} and {attempt.number}"
        return Verdict("stopped", f"failed twice {at} ({numbers}): not a matter of luck; see the ranks' logs")
    if same and attempt.ending == "warned":
        return Verdict("stopped", f"warned twice {at}: the time limit is too short to get further")
    if len(earlier) + 1 >= limit:
        return Verdict("stopped", f"{limit} attempts, the last one {attempt.ending} {at}")
    return Verdict(
        "again", f"attempt {attempt.number} {attempt.ending} {at}; the job goes back into the queue"
    )


def begin(run: Path, stage: str) -> int:
    """Record that an attempt begins; its number. An attempt that Slurm cut short is recorded as lost.

    Raises:
        InputError: the job has had all its attempts.
    """
    _, settings = load_chain(run)
    folder = run / "stages" / stage
    job = os.environ["SLURM_JOB_ID"]
    number = len(_folders(folder))
    if number and not (folder / f"attempt-{number}/end.json").exists():
        started = read_json(folder / f"attempt-{number}/begin.json")
        _write_end(folder, Attempt(number, started["job"], "lost", -1, progress(run, stage, number)))
    past = [one for one in attempts(folder) if one.job == job]
    if len(past) >= settings.slurm.attempts:
        reason = f"{len(past)} attempts, the last one {past[-1].ending} at step {past[-1].step}"
        _report(run, stage, Verdict("stopped", reason))
        raise InputError(f"{stage}: {reason}")
    write_json(
        folder / f"attempt-{number + 1}" / "begin.json",
        {"job": job, "started": _now().isoformat(), "nodes": os.environ.get("SLURM_JOB_NODELIST")},
    )
    return number + 1


def end(run: Path, stage: str, number: int, status: int, warned: bool) -> tuple[Verdict, int]:
    """Record how an attempt ended; what happens next, and the exit status that says so to the job."""
    _, settings = load_chain(run)
    folder = run / "stages" / stage
    started = read_json(folder / f"attempt-{number}/begin.json")
    seconds = (_now() - datetime.datetime.fromisoformat(started["started"])).total_seconds()
    own = rank_statuses(folder / f"attempt-{number}")
    # srun gives the highest status of all ranks: that of those that were ended because one had failed.
    status = 2 if 2 in own.values() else status
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
    return verdict, {"done": 0, "again": TRY_AGAIN, "stopped": status or 1}[verdict.outcome]


def attempts(folder: Path) -> list[Attempt]:
    """The attempts at a stage that have ended, in order."""
    ends = [path / "end.json" for path in _folders(folder)]
    return [Attempt(**read_json(path)) for path in ends if path.exists()]


def rank_statuses(attempt: Path) -> dict[int, int]:
    """Rank to exit status, of the ranks that failed by themselves; slurm/rank.sh writes them."""
    files = attempt.glob("rank-*.status")
    return {int(file.stem.removeprefix("rank-")): int(file.read_text()) for file in files}


def progress(run: Path, stage: str, number: int) -> int:
    """The step that an attempt got to.

    Training by its ranks' logs or what is saved, search by its state, preprocessing by its finished shards,
    and every other stage by its finished commands.
    """
    if stage == "search":
        path = run / "search" / "state.json"
        state = read_json(path)["state"] if path.exists() else {"cost": {}}
        under_way = sum(map(len, state.get("race", [])))  # of the generation that is being scored
        return int(state["cost"].get("evaluations", 0) + state["cost"].get("steps", 0) + under_way)
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


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("attempt-*"), key=lambda path: int(path.name.removeprefix("attempt-")))


def _write_end(folder: Path, attempt: Attempt) -> None:
    write_json(folder / f"attempt-{attempt.number}" / "end.json", asdict(attempt))


def _report(run: Path, stage: str, verdict: Verdict) -> None:
    """The stage's report; other programs read it."""
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


def _main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["begin", "end"])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("stage", help="its stage")
    parser.add_argument("number", type=int, nargs="?", help="of the attempt that ends")
    parser.add_argument("--status", type=int, default=0, help="exit status of the stage's commands")
    parser.add_argument("--warned", type=int, default=0, help="1: the job was told to stop")
    arguments = parser.parse_args()
    if arguments.action == "begin":
        print(begin(arguments.run, arguments.stage))
        return
    verdict, code = end(
        arguments.run, arguments.stage, arguments.number, arguments.status, bool(arguments.warned)
    )
    print(f"{arguments.stage}: {verdict.outcome}: {verdict.reason}", file=sys.stderr, flush=True)
    print(code)


if __name__ == "__main__":
    run_main(_main)
