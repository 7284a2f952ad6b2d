"""Where a chain is."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from megatron_longrope2.launch.attempts import attempts, progress
from megatron_longrope2.launch.cluster import QueuedJob, queued_jobs
from megatron_longrope2.launch.run_folder import load_chain, stage_report
from megatron_longrope2.tables import text_table


class StageStatus(NamedTuple):
    """A row of the table."""

    stage: str
    job: str
    state: str
    attempts: int
    step: int
    note: str


def chain_status(run: Path) -> str:
    """The state of each stage, from Slurm's queue and the run folder, as a table.

    Below it come the newest logs of the stages that did not end well.

    Raises:
        InputError: no chain there, or no Slurm here.
    """
    chain, settings = load_chain(run)
    queue = queued_jobs()
    rows = [_stage(run, name, chain["jobs"].get(name, ""), queue) for name in settings.stages]
    table = text_table(StageStatus._fields, rows, left=len(StageStatus._fields))
    return "\n".join([table, *_logs(run, settings.stages)])


def _stage(run: Path, name: str, job: str, queue: dict[str, QueuedJob]) -> StageStatus:
    begun = len(list((run / "stages" / name).glob("attempt-*/begin.json")))
    step = progress(run, name, begun) if begun else 0
    report = stage_report(run, name)
    if job in queue:
        state, note = queue[job].state.lower(), queue[job].reason
        if report.get("outcome") == "again":
            note += f"; {report['reason']}"
    elif report.get("outcome") in ("done", "stopped"):
        state, note = report["outcome"], report["reason"]
    else:
        state, note = "ended", "Slurm ended it (scancel, time limit, or a stage before it failed)"
    return StageStatus(name, job or "-", state, begun, step, note)


def _logs(run: Path, stages: Iterable[str]) -> Iterator[str]:
    for name in stages:
        folder = run / "stages" / name
        past = attempts(folder)
        if past and past[-1].ending != "done":
            log = folder / f"job-{past[-1].job}.log"
            yield f"{name}: {log}, ranks in {folder}/attempt-{past[-1].number}/"
