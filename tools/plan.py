"""List the parallel layouts of a training run that fit into GPU memory."""

from pathlib import Path

from cyclopts.types import PositiveInt

from megatron_longrope2.files import write_json
from megatron_longrope2.planning.plan import plan, reasons, table, to_dict
from megatron_longrope2.planning.settings import PlanSettings


def main(*, settings: PlanSettings, top: PositiveInt = 10, output: Path | None = None) -> None:
    """List the parallel layouts of a training run that fit into GPU memory, and recommend one.

    The hours come from a formula that has not been calibrated on any GPU; docs/training.md has it.

    Args:
        settings: What is planned.
        top: The number of layouts to print.
        output: A JSON file to write all layouts to, with bytes, seconds and Megatron's arguments.
    """
    rows = plan(settings)
    print(table(rows[:top]))
    print(f"\nrecommended: {rows[0].layout.arguments()}\n{reasons(rows, settings)}")
    if output:
        write_json(output, to_dict(rows, settings))
