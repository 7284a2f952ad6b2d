"""What all benchmarks share: timing in turns, and the result that is written."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cyclopts import Parameter

from megatron_longrope2.files import write_json, write_text
from megatron_longrope2.provenance import provenance
from megatron_longrope2.tables import markdown_table

# Processes that wanted a core, in the minute before this one started.
LOAD = os.getloadavg()[0]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """What every benchmark is told.

    Attributes:
        output: The JSON file to write. Tables in Markdown are written beside it, with the suffix .md.
    """

    output: Path


@dataclass(frozen=True)
class Measurement:
    """What a benchmark found.

    Attributes:
        settings: a dataclass of its options.
        ratios: what is compared with targets.
        measured: the numbers behind the ratios, with their units in their names. `table`, if there is one:
            rows for people, each a dict by column.
    """

    settings: Any
    ratios: dict[str, float]
    measured: dict[str, Any]


def save(found: Measurement | None) -> None:
    """Write a measurement, and where it was made, to its settings' `output`; print the ratios.

    There is none where a command printed its help.
    """
    if found is None:
        return
    environment = {
        **provenance(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": LOAD,
    }
    result = json.loads(json.dumps(asdict(found) | {"environment": environment}, default=str))
    write_json(found.settings.output, result)
    write_text(found.settings.output.with_suffix(".md"), markdown(result))
    for ratio, value in found.ratios.items():
        print(f"{ratio}: {value:.3f}")


def markdown(result: dict[str, Any]) -> str:
    """What `save` writes as JSON, for people."""
    environment, measured = result["environment"], result["measured"]
    made = f"{environment['date']}, {environment['device']}, torch {environment['versions']['torch']}"
    numbers = result["ratios"] | {k: v for k, v in measured.items() if isinstance(v, int | float)}
    tables = [markdown_table(["", "value"], [(name, _rounded(value)) for name, value in numbers.items()])]
    if rows := measured.get("table"):
        tables.insert(0, markdown_table(list(rows[0]), [list(map(_rounded, row.values())) for row in rows]))
    return "\n\n".join([f"`{environment['command']}`", made, *tables]) + "\n"


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_turns(
    actions: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of each action's fastest run; they take turns, so that a busy machine slows all alike.

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
    return {name: min(times) for name, times in seconds.items()}


def label(length: int) -> str:
    """131072 is 128k; what is no multiple of 1024 stays as it is."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
