"""`longrope2 search` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.distributed.launch import ROOT

SEARCH = ("-m", "megatron_longrope2", "search")
SECONDS = 600


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *SEARCH, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def search(*arguments: str) -> str:
    """Run it to its end; what it printed."""
    process = start(*arguments)
    printed, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors[-3000:]
    return printed


def refused(*arguments: str) -> str:
    """Run it on bad input: status 2, and the one line that says why."""
    process = start(*arguments)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
    return line


def kill(output: Path, *arguments: str) -> None:
    """Start it and kill it at its first saved state."""
    process = start(*arguments)
    deadline = time.monotonic() + SECONDS
    while not (output / "state.json").exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (output / "search.json").exists(), "killed too late to show anything"


def results(output: Path) -> tuple[dict, dict]:
    """search.json and factors.json."""
    report, factors = (json.loads((output / f"{name}.json").read_text()) for name in ("search", "factors"))
    return report, factors
