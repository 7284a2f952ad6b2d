"""Run a benchmark from the repository's root, and write its ratios as JSON.

A benchmark is a module of this folder whose `measure` takes its settings and returns a `Measurement`.
"""

import ast
from pathlib import Path

from benchmarks.measuring import save
from megatron_longrope2.cli import command_line, run_main

BENCHMARKS = ("convert", "learned", "memory", "preprocess", "scoring", "search", "throughput", "train")

benchmarks = command_line("python -m benchmarks", help=__doc__, version_flags=[])
benchmarks.result_action = save
for name in BENCHMARKS:
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    benchmarks.command(f"benchmarks.{name}:measure", name=name, help=ast.get_docstring(ast.parse(source)))

if __name__ == "__main__":
    run_main(benchmarks)
