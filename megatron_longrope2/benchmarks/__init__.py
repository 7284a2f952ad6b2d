"""Speed against what the same work takes elsewhere, as ratios.

A benchmark is a module of this package: its name is the subcommand of `longrope2-benchmark`, its docstring
the help, `add_arguments(parser)` its options, and `measure(args)` returns a `Measurement`. Every module is
imported for the help, so that heavy imports belong inside `measure`. A module whose name begins with an
underscore is no benchmark.
"""

import os
import platform
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import distributions, version
from pkgutil import iter_modules
from typing import Any, Protocol, cast


@dataclass(frozen=True)
class Measurement:
    """What a benchmark found.

    Attributes:
        settings: sizes and repetitions that it was run with.
        ratios: what is compared with targets.
        measured: the numbers behind the ratios, with their units in their names. `table`, if there is one:
            rows for people, each a dict by column.
    """

    settings: dict[str, Any]
    ratios: dict[str, float]
    measured: dict[str, Any]


class Benchmark(Protocol):
    """A module of this package."""

    __doc__: str | None

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare its options."""

    def measure(self, args: Namespace) -> Measurement:
        """Run it."""


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by its name."""
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    return {name: cast(Benchmark, import_module(f"{__name__}.{name}")) for name in names}


def run(name: str, args: Namespace) -> dict[str, Any]:
    """Run a benchmark; return its measurement and where it was made, JSON-ready."""
    start, load = time.monotonic(), os.getloadavg()[0]
    found = benchmarks()[name].measure(args)
    return {
        "name": name,
        "settings": found.settings,
        "ratios": found.ratios,
        "measured": found.measured,
        "environment": {**_environment(), "load_before": load, "seconds": time.monotonic() - start},
    }


def markdown(result: dict[str, Any]) -> str:
    """What `run` returned, for people."""
    environment = result["environment"]
    made = f"{environment['date']}, {environment['device']}, torch {environment['torch']}"
    rows = [{"ratio": name, "value": f"{value:.3f}"} for name, value in result["ratios"].items()]
    tables = [_table(rows) for rows in (result["measured"].get("table", []), rows) if rows]
    parts = [f"# {result['name']}", made, *tables, f"```\n{environment['command']}\n```"]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, ["---"] * len(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def alternate(
    actions: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each action, `repeats` times; they take turns, so that a busy machine slows all alike.

    Args:
        clock: `time.process_time` leaves out what other processes take of a core (and waiting for disks).
    """
    import torch

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


def _environment() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    packages = ("megatron-core", "transformers", "transformer-engine")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["longrope2-benchmark", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in packages if _is_installed(name)},
    }


def _is_installed(package: str) -> bool:
    return any(distributions(name=package))
