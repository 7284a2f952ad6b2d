"""`longrope2 search` in a process of its own."""

import json
import time
from pathlib import Path

from tests.processes import SECONDS, Processes

SEARCH = ("-m", "megatron_longrope2", "search")


def search(*arguments: str) -> str:
    """Run it to its end; what it printed."""
    done = Processes(*SEARCH, *arguments).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def refused(*arguments: str) -> str:
    """Run it on bad input: status 2, and the one line that says why."""
    done = Processes(*SEARCH, *arguments).wait()
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


def kill(output: Path, *arguments: str) -> None:
    """Start it and kill it at its first saved state."""
    process = Processes(*SEARCH, *arguments)
    deadline = time.monotonic() + SECONDS
    while not (output / "state.json").exists():
        assert process.running, process.wait().stderr[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (output / "search.json").exists(), "killed too late to show anything"


def results(output: Path) -> tuple[dict, dict]:
    """search.json and factors.json."""
    report, factors = (json.loads((output / f"{name}.json").read_text()) for name in ("search", "factors"))
    return report, factors
