"""List the parallel layouts of a training run that fit into GPU memory."""

from dataclasses import asdict
from pathlib import Path

from cyclopts.types import PositiveInt

from megatron_longrope2.files import write_json
from megatron_longrope2.planning.plan import plan, reasons, table, to_dict
from megatron_longrope2.planning.settings import PlanSettings
from megatron_longrope2.rehearsal.calibration import rehearsed_plan


def main(
    *,
    settings: PlanSettings,
    top: PositiveInt = 10,
    formula_only: bool = False,
    output: Path | None = None,
) -> None:
    """List the parallel layouts of a training run that fit into GPU memory, and recommend one.

    Memory comes from a formula; the layout that is recommended is rehearsed, which corrects the formula. The
    hours come from a formula that has not been calibrated on any GPU; docs/training.md has both.

    Args:
        settings: What is planned.
        top: The number of layouts to print.
        formula_only: Rehearse nothing, which takes a second instead of a minute.
        output: A JSON file to write all layouts to, with bytes, seconds and Megatron's arguments.
    """
    rows, checks = (plan(settings), []) if formula_only else rehearsed_plan(settings)
    print(table(rows[:top]))
    print(f"\nrecommended: {rows[0].layout.arguments()}\n{reasons(rows, settings)}")
    print(*checks, sep="\n")
    if output:
        found = [asdict(check) for check in checks]
        write_json(output, {**to_dict(rows, settings), "rehearsals": found})
