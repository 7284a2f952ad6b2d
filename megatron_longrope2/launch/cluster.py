"""What Slurm is asked: whether a partition exists, to submit and cancel jobs, and what is queued."""

import getpass
import shutil
import subprocess
from typing import NamedTuple

from megatron_longrope2.errors import InputError


class QueuedJob(NamedTuple):
    """A job that Slurm still has: its state (PENDING, RUNNING, ...), and why it waits or where it runs."""

    state: str
    reason: str


def check_partitions(named: dict[str, str]) -> None:
    """Refuse a partition that the cluster does not have.

    Args:
        named: settings key to partition, or to several with commas between them.

    Raises:
        InputError: no Slurm here, or no such partition; the message names those that exist.
    """
    known = sorted({line.rstrip("*") for line in slurm("sinfo", "--noheader", "--format=%R").splitlines()})
    for key, partitions in named.items():
        for name in partitions.split(","):
            if name not in known:
                raise InputError(f"{key}: no partition {name!r} on this cluster; it has {', '.join(known)}")


def submit_job(*options: str) -> str:
    """Submit a batch script; the job's id."""
    return slurm("sbatch", "--parsable", *options).strip().split(";")[0]


def cancel_jobs(ids: list[str]) -> None:
    """Cancel jobs; those that have ended are no error."""
    if ids:
        subprocess.run(["scancel", *ids], check=False, capture_output=True)


def queued_jobs() -> dict[str, QueuedJob]:
    """This user's jobs that have not ended, by id."""
    listed = slurm("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i|%T|%R")
    rows = [line.strip().split("|", 2) for line in listed.splitlines()]
    return {job: QueuedJob(state, reason) for job, state, reason in rows}


def slurm(*command: str) -> str:
    """Run one of Slurm's commands; what it printed.

    Raises:
        InputError: it is not installed, or it refused.
    """
    if not shutil.which(command[0]):
        raise InputError(f"{command[0]}: not found; run this on a login node of a Slurm cluster")
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        message = " ".join(finished.stderr.split()) or f"exit status {finished.returncode}"
        raise InputError(f"{command[0]}: {message}")
    return finished.stdout
