"""One cluster for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import cluster as slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    """A running Slurm of two nodes; skips where it cannot be started."""
    reason = slurm.missing()
    if reason:
        pytest.skip(f"no Slurm here: {reason}")
    started = slurm.start(tmp_path_factory.mktemp("slurm"))
    yield started
    started.stop()


def processes(**variables: str) -> Iterator[tuple[int, str]]:
    """(pid, command line) of the processes that have these environment variables."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield int(folder.name), command
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
