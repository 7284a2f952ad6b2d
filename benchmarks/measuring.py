"""What all benchmarks share: timing in turns, and the result that is written."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from megatron_longrope2.provenance import provenance
from megatron_longrope2.tables import markdown_table


@dataclass(frozen=True)
class Measurement:
    """What a benchmark found.

    Attributes:
        ratios: what is compared with targets.
        measured: the numbers behind the ratios, with their units in their names. `table`, if there is one:
            rows for people, each a dict by column.
    """

    ratios: dict[str, float]
    measured: dict[str, Any]


def result(name: str, settings: Any, measure: Callable[[Any], Measurement]) -> dict[str, Any]:
    """Run a benchmark; return its measurement and where it was made, JSON-ready."""
    start, load = time.monotonic(), os.getloadavg()[0]
    found = measure(settings)
    environment = {
        **provenance(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": load,
        "seconds": time.monotonic() - start,
    }
    whole = {"name": name, "settings": asdict(settings), **asdict(found), "environment": environment}
    return json.loads(json.dumps(whole, default=str))  # paths as text


def markdown(found: dict[str, Any]) -> str:
    """What `result` returned, for people."""
    environment, measured = found["environment"], found["measured"]
    made = f"{environment['date']}, {environment['device']}, torch {environment['versions']['torch']}"
    numbers = found["ratios"] | {k: v for k, v in measured.items() if isinstance(v, int | float)}
    tables = [markdown_table(["", "value"], [(name, _rounded(value)) for name, value in numbers.items()])]
    if rows := measured.get("table"):
        tables.insert(0, markdown_table(list(rows[0]), [list(map(_rounded, row.values())) for row in rows]))
    return "\n\n".join([f"# {found['name']}", made, *tables, f"```\n{environment['command']}\n```"]) + "\n"


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_turns(
    actions: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each action, `repeats` times; they take turns, so that a busy machine slows all alike.

    Args:
        clock: `time.process_time` leaves out what other processes take of a core (and waiting for disks).
    """
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(repeats):
        for name in actions if i % 2 else reversed(actions):
            synchronize()
            start = clock()
            actions[name]()
            synchronize()
            seconds[name].append(clock() - start)
    return seconds
