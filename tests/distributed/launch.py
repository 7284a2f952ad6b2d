"""The real torchrun, for what only it does; `tests.processes.torchrun` is the quick one."""

import os
import subprocess
import sys

from tests.processes import ROOT, free_port, torchrun

__all__ = ["ROOT", "free_port", "launch", "torchrun"]


def launch(processes: int, *command: object, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    """Run `command` under torchrun in so many processes, whatever becomes of it."""
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
