"""Where a chain is."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_longrope2.files import read_json
from megatron_longrope2.launch.attempts import attempts, progress
from megatron_longrope2.launch.chain import REPORT, load_chain
from megatron_longrope2.launch.cluster import QueuedJob, queued_jobs


@dataclass(frozen=True)
class StageStatus:
    """A row of the table."""

    stage: str
    job: str
    state: str
    attempts: int
    step: str
    note: str


def chain_status(run: Path) -> list[StageStatus]:
    """The state of each stage, from Slurm's queue and the run folder.

    Raises:
        InputError: no chain there, or no Slurm here.
    """
    chain, settings = load_chain(run)
    queue = queued_jobs()
    return [_stage(run, name, chain["jobs"].get(name, ""), queue) for name in settings.stages]


def _stage(run: Path, name: str, job: str, queue: dict[str, QueuedJob]) -> StageStatus:
    folder = run / "stages" / name
    begun = len(list(folder.glob("attempt-*/begin.json")))
    step = progress(run, name, begun) if begun else 0
    report = read_json(folder / REPORT) if (folder / REPORT).exists() else {}
    if job in queue:
        state, note = queue[job].state.lower(), queue[job].reason
        if report.get("outcome") == "again":
            note += f"; {report['reason']}"
    elif report.get("outcome") in ("done", "stopped"):
        state, note = report["outcome"], report["reason"]
    else:
        # Cancelled, out of time, or its predecessor failed: Slurm has dropped it.
        state, note = "ended", "Slurm ended it (scancel, time limit, or a stage before it failed)"
    return StageStatus(name, job or "-", state, begun, str(step) if step else "-", note)


def table(rows: Iterable[StageStatus]) -> str:
    """Rows under a heading."""
    cells = [("stage", "job", "state", "attempts", "step", "")]
    cells += [(row.stage, row.job, row.state, str(row.attempts), row.step, row.note) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]).rstrip()
        for line in cells
    )


def logs(run: Path) -> list[str]:
    """The newest log of each stage that did not end well, and where its ranks' logs are."""
    _, settings = load_chain(run)
    found = []
    for name in settings.stages:
        folder = run / "stages" / name
        past = attempts(folder)
        if past and past[-1].ending != "done":
            job_log = folder / f"job-{past[-1].job}.log"
            found.append(f"{name}: {job_log}, ranks in {folder}/attempt-{past[-1].number}/")
    return found
