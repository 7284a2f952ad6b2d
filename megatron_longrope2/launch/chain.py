"""A chain is submitted: its run folder is made, its jobs depend on each other."""

import contextlib
import datetime
import getpass
import importlib.metadata
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, write_json, write_text
from megatron_longrope2.launch.cluster import cancel_jobs, check_partitions, queued_jobs, submit_job
from megatron_longrope2.launch.commands import job_file, stage_commands
from megatron_longrope2.launch.preflight import settings_problems
from megatron_longrope2.launch.settings import NEEDS, ROOT, Settings, load_settings

FORMAT = "longrope2-chain/1"
CHAIN, SETTINGS, REPORT = "chain.json", "settings.toml", "report.json"


def submit(settings: Settings, *, resume: bool = False) -> dict[str, str]:
    """Check everything, make the run folder, submit a job for each stage; stage to job id.

    Args:
        resume: go on with a chain that has stopped: stages that are done are not submitted again.

    Raises:
        InputError: bad settings, a partition that does not exist, a run folder that cannot be written, or
            that has a chain already; nothing was submitted then. Or Slurm refused a job; those submitted
            before it are cancelled.
    """
    problems = settings_problems(settings)
    if problems:
        raise InputError("\nerror: ".join(problems))
    _check_partitions(settings)
    earlier = _earlier_chain(settings, resume)
    _check_writable(settings.run)
    record = settings.run / CHAIN
    before = record.read_text(encoding="utf-8") if record.exists() else None
    jobs: dict[str, str] = {}
    todo = [name for name in settings.stages if not is_done(settings.run, name)]
    try:
        # A job may start before the last one is submitted: what it reads is there first.
        _write_run_folder(settings)
        _write_chain(settings, earlier, jobs)
        for name in todo:
            jobs[name] = submit_job(*_sbatch_options(settings, name, jobs))
        _write_chain(settings, earlier, jobs)
    except BaseException:
        cancel_jobs(list(jobs.values()))
        record.unlink(missing_ok=True)
        if before is not None:
            write_text(record, before)
        raise
    return jobs


def load_chain(run: Path) -> tuple[dict[str, Any], Settings]:
    """The record of a submitted chain and its settings.

    Raises:
        InputError: no chain there.
    """
    path = run / CHAIN
    if not path.exists():
        raise InputError(f"{path}: no such file; give the run folder of a chain that was submitted")
    chain = read_json(path)
    return chain, load_settings(run / SETTINGS, base=Path(chain["base"]))


def is_done(run: Path, name: str) -> bool:
    """Whether a stage has completed."""
    report = run / "stages" / name / REPORT
    return report.exists() and read_json(report)["outcome"] == "done"


def _check_partitions(settings: Settings) -> None:
    named = {f"{settings.source}: slurm: partition": settings.slurm.partition}
    for name, stage in settings.stages.items():
        if stage.partition:
            named[f"{settings.source}: stages.{name}: partition"] = stage.partition
    check_partitions(named)


def _earlier_chain(settings: Settings, resume: bool) -> list[dict[str, Any]]:
    """Records of the chains that this run folder has had."""
    path = settings.run / CHAIN
    if not path.exists():
        return []
    chain = read_json(path)
    queue = queued_jobs()
    waiting = [job for job in chain["jobs"].values() if job in queue]
    if waiting:
        raise InputError(
            f"{settings.run}: this chain is submitted already, as job {', '.join(waiting)}; tools/status.py "
            "shows where it is, scancel ends it"
        )
    if not resume:
        raise InputError(
            f"{settings.run}: a chain was submitted here on {chain['submitted']}; give --resume to go on "
            "with its stages that are not done, or another run folder"
        )
    return [*chain["earlier"], {key: chain[key] for key in ("submitted", "git_commit", "jobs")}]


def _check_writable(run: Path) -> None:
    probe = run / f".probe-{os.getpid()}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{run}: the run folder cannot be written: {error.strerror}; choose another (run = ...)"
        ) from error


def _write_run_folder(settings: Settings) -> None:
    if settings.source.resolve() != settings.run / SETTINGS:
        shutil.copyfile(settings.source, settings.run / SETTINGS)
    for name in settings.stages:
        write_text(settings.run / "stages" / name / "job.sh", job_file(settings, name))


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
    return [*words, str(ROOT / "slurm" / f"{name}.sbatch"), str(settings.run)]


def _write_chain(settings: Settings, earlier: list[dict[str, Any]], jobs: dict[str, str]) -> None:
    write_json(
        settings.run / CHAIN,
        {
            "format": FORMAT,
            "name": settings.name,
            "submitted": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "by": f"{getpass.getuser()}@{socket.gethostname()}",
            "settings": str(settings.source.resolve()),
            "base": str(settings.base),
            "git_commit": git_commit(),
            "version": importlib.metadata.version("megatron-longrope2"),
            "jobs": jobs,
            "commands": {name: stage_commands(settings, name) for name in settings.stages},
            "earlier": earlier,
        },
    )


def git_commit() -> str | None:
    """The commit of this source tree, marked when files differ from it; None outside of git."""

    def git(*words: str) -> str:
        command: Sequence[str] = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    return None
