"""A chain is submitted: its run folder is made, and its jobs depend on each other."""

import contextlib
import datetime
import getpass
import socket
import subprocess
from typing import Any

from megatron_longrope2 import __version__
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, write_json, write_text
from megatron_longrope2.launch.cluster import cancel_jobs, check_partitions, queued_jobs, submit_job
from megatron_longrope2.launch.commands import job_file, stage_commands
from megatron_longrope2.launch.preflight import settings_problems
from megatron_longrope2.launch.run_folder import CHAIN, SETTINGS, stage_report
from megatron_longrope2.launch.settings import NEEDS, ROOT, Settings


def submit(settings: Settings, *, resume: bool = False) -> dict[str, str]:
    """Check everything, make the run folder, submit a job for each stage; stage to job id.

    Args:
        resume: continue a chain that has stopped: stages that are done are not submitted again.

    Raises:
        InputError: bad settings, a partition that does not exist, a run folder that cannot be written, or
            that has a chain already; nothing was submitted then. Or Slurm refused a job; those submitted
            before it are cancelled.
    """
    if problems := settings_problems(settings):
        raise InputError("\nerror: ".join(problems))
    stages = {f"stages.{name}": stage.partition for name, stage in settings.stages.items()}
    named = {"slurm": settings.slurm.partition, **stages}
    check_partitions({f"{settings.source}: {key}.partition": name for key, name in named.items() if name})
    earlier = _earlier_chains(settings, resume)
    for name in settings.stages:
        write_text(settings.run / "stages" / name / "job.sh", job_file(settings, name))
    write_text(settings.run / SETTINGS, settings.source.read_text(encoding="utf-8"))
    record = settings.run / CHAIN
    before = record.read_text(encoding="utf-8") if record.exists() else None
    jobs: dict[str, str] = {}
    try:
        # A job may start before the last one is submitted, and reads the record.
        _write_chain(settings, earlier, jobs)
        for name in settings.stages:
            if stage_report(settings.run, name).get("outcome") != "done":
                jobs[name] = submit_job(*_sbatch_options(settings, name, jobs))
        _write_chain(settings, earlier, jobs)
    except BaseException:
        cancel_jobs(list(jobs.values()))
        record.unlink(missing_ok=True)
        if before is not None:
            write_text(record, before)
        raise
    return jobs


def _earlier_chains(settings: Settings, resume: bool) -> list[dict[str, Any]]:
    """Records of the chains that this run folder has had.

    Raises:
        InputError: jobs of the last one are still queued, or it was not asked to resume it.
    """
    path = settings.run / CHAIN
    if not path.exists():
        return []
    chain = read_json(path)
    queue = queued_jobs()
    waiting = [job for job in chain["jobs"].values() if job in queue]
    if waiting:
        raise InputError(
            f"{settings.run}: this chain is submitted already, as job {', '.join(waiting)}; `longrope2 "
            "status` shows where it is, scancel ends it"
        )
    if not resume:
        raise InputError(
            f"{settings.run}: a chain was submitted here on {chain['submitted']}; give --resume to continue "
            "with its stages that are not done, or another run folder"
        )
    return [*chain["earlier"], {key: chain[key] for key in ("submitted", "git_commit", "jobs")}]


def _sbatch_options(settings: Settings, name: str, jobs: dict[str, str]) -> list[str]:
    stage, slurm = settings.stages[name], settings.slurm
    options = {
        "job-name": f"{settings.name}-{name}",
        "partition": stage.partition or slurm.partition,
        "account": slurm.account,
        "nodes": stage.nodes,
        "ntasks-per-node": stage.processes,
        "cpus-per-task": stage.cpus_per_process,
        "gpus-per-node": stage.gpus_per_node or None,
        "mem": stage.memory,
        "time": stage.time,
        "signal": f"B:USR1@{slurm.warning_seconds}",
        "output": f"{settings.run}/stages/{name}/job-%j.log",
        "chdir": settings.run,
    }
    words = [f"--{key}={value}" for key, value in options.items() if value is not None]
    before = [jobs[need] for need in NEEDS[name] if need in jobs]
    if before:
        # A job whose predecessor failed is taken out of the queue instead of waiting for ever.
        words += [f"--dependency=afterok:{':'.join(before)}", "--kill-on-invalid-dep=yes"]
    words += [*slurm.options, *stage.slurm_options]
    return [*words, str(ROOT / "slurm" / "stage.sbatch"), str(settings.run), name]


def _write_chain(settings: Settings, earlier: list[dict[str, Any]], jobs: dict[str, str]) -> None:
    write_json(
        settings.run / CHAIN,
        {
            "name": settings.name,
            "submitted": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "by": f"{getpass.getuser()}@{socket.gethostname()}",
            "settings": str(settings.source.resolve()),
            "base": str(settings.base),
            "git_commit": git_commit(),
            "version": __version__,
            "jobs": jobs,
            "commands": {name: stage_commands(settings, name) for name in settings.stages},
            "earlier": earlier,
        },
    )


def git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` if tracked files differ from it; None outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None
