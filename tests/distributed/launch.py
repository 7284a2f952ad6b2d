"""Start a worker under torchrun on this machine and show what it printed if it fails."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(processes: int, *command: str | Path, timeout: int = 600) -> str:
    """Run `command` in so many processes; return its output.

    Raises:
        AssertionError: exit status other than 0, with the end of the output.
    """
    finished = launch(processes, *command, timeout=timeout)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-6000:]
    return finished.stdout + finished.stderr


def launch(processes: int, *command: str | Path, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    """Run `command` in so many processes, whatever becomes of it."""
    environment = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE"}}
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
            *("--master-port", str(free_port()), *map(str, command)),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=False,
    )
