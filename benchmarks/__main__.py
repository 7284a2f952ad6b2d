"""Run a benchmark from the repository's root, and write its ratios as JSON.

A benchmark is a module of this folder: `Settings` are its options, `measure` runs it.
"""

import sys
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

from cyclopts import App

from benchmarks.measuring import markdown, result
from megatron_longrope2 import device
from megatron_longrope2.cli import command_line, run
from megatron_longrope2.files import write_json, write_text

BENCHMARKS = {
    "convert": "Conversion of checkpoints, against a copy of the same files.",
    "learned": "Factors learned by gradient, against the evolution and the closed-form methods.",
    "preprocess": "Preprocessing, against the tokenizer alone.",
    "scoring": "One candidate of the factor search, against a forward pass without logits.",
    "search": "The factor search, against scoring every candidate in full.",
    "throughput": "Training steps at long lengths, against upstream's plain RoPE and transformers.",
    "train": "A training step of a small model, against upstream's plain RoPE.",
}


def add_command(app: App, name: str) -> None:
    """Give the command line a benchmark, whose module is imported here."""
    if name != "convert":  # it needs no Megatron, and measures the memory of this process
        device.install()
    module = import_module(f"benchmarks.{name}")

    def command(*, settings: module.Settings, output: Path, table: Path | None = None) -> None:
        """Run it.

        Args:
            output: The JSON file to write.
            table: A Markdown file to write as well.
        """
        found = result(name, settings, module.measure)
        write_json(output, found)
        if table:
            write_text(table, markdown(found))
        for ratio, value in found["ratios"].items():
            print(f"{ratio}: {value:.3f}")

    if all(field.default is not MISSING for field in fields(module.Settings)):
        command.__kwdefaults__["settings"] = module.Settings()  # no option is required
    app.command(command, name=name, help=module.__doc__)


if __name__ == "__main__":
    app = command_line("python -m benchmarks", help=__doc__, version_flags=[])
    for name, what in BENCHMARKS.items():
        if name in sys.argv[1:2]:
            add_command(app, name)
        else:
            app.command(App(name=name, help=what))
    run(app)
