"""What is asked of Slurm: is there such a partition, submit, cancel, what is queued."""

import getpass
import shutil
import subprocess
from dataclasses import dataclass

from megatron_longrope2.errors import InputError


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm still has: its state (PENDING, RUNNING, ...) and why it waits, or where it runs."""

    state: str
    reason: str


def check_partitions(named: dict[str, str]) -> None:
    """Refuse a partition that the cluster has not.

    Args:
        named: settings key to partition (or several, with commas).

    Raises:
        InputError: no Slurm here, or no such partition; the cluster's own are named.
    """
    known = sorted({line.rstrip("*") for line in slurm("sinfo", "--noheader", "--format=%R").splitlines()})
    for key, partitions in named.items():
        for partition in partitions.split(","):
            if partition not in known:
                raise InputError(
                    f"{key}: no partition {partition!r} on this cluster; it has {', '.join(known)}"
                )


def submit_job(*options: str) -> str:
    """Submit a batch script; the job's id."""
    return slurm("sbatch", "--parsable", *options).strip().split(";")[0]


def cancel_jobs(ids: list[str]) -> None:
    """Cancel jobs; those that are gone are no error."""
    if ids:
        subprocess.run(["scancel", *ids], check=False, capture_output=True)


def queued_jobs() -> dict[str, QueuedJob]:
    """This user's jobs that have not ended, by id."""
    jobs = {}
    listed = slurm("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i|%T|%R")
    for line in listed.splitlines():
        job, state, reason = line.strip().split("|", 2)
        jobs[job] = QueuedJob(state, reason)
    return jobs


def slurm(*command: str) -> str:
    """Run one of Slurm's commands; what it printed.

    Raises:
        InputError: it is not installed, or refused.
    """
    if not shutil.which(command[0]):
        raise InputError(f"{command[0]}: not found; run this on a login node of a Slurm cluster")
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        message = " ".join(finished.stderr.split()) or f"exit status {finished.returncode}"
        raise InputError(f"{command[0]}: {message}")
    return finished.stdout
