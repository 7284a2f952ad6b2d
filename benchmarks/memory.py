"""Compare the planner's memory formula with rehearsals, on the layouts that the recipes' pages list.

Every rank that differs is rehearsed at its true shapes. Nothing is timed: a busy machine does no harm.
"""

from dataclasses import dataclass

from benchmarks.measuring import Measurement, Output
from megatron_longrope2.planning.layout import Layout
from megatron_longrope2.planning.memory import GIB, peak_memory
from megatron_longrope2.planning.plan import VOCABULARY_UNIT
from megatron_longrope2.planning.settings import PlanSettings
from megatron_longrope2.rehearsal.calibration import check

LAYOUTS = {
    "llama3-8b": (
        Layout(4, 8, 1, 2, "none"),
        Layout(2, 8, 1, 4, "none"),
        Layout(4, 4, 1, 4, "none"),
        Layout(8, 8, 1, 1, "none"),
        Layout(2, 8, 1, 4, "mlp"),
        Layout(2, 16, 2, 1, "none"),
        Layout(4, 8, 1, 1, "none"),
        Layout(2, 8, 1, 1, "none"),
        Layout(4, 2, 1, 1, "mlp"),
    ),
    "phi3-mini": (
        Layout(2, 4, 1, 8, "none"),
        Layout(4, 4, 1, 4, "none"),
        Layout(1, 8, 1, 8, "mlp"),
        Layout(8, 4, 1, 2, "none"),
        Layout(2, 4, 1, 4, "none"),
        Layout(2, 4, 1, 2, "none"),
        Layout(4, 2, 1, 1, "none"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Which models' layouts are compared.

    Attributes:
        models: Presets of the planner.
    """

    models: tuple[str, ...] = tuple(LAYOUTS)


def measure(*, settings: Settings) -> Measurement:
    """Rehearse a training step in every layout."""
    table, differences = [], []
    for model in settings.models:
        for layout in LAYOUTS[model]:
            gpus = layout.tensor * layout.context * layout.pipeline * layout.data
            planned = PlanSettings(model=model, gpus=gpus)
            dims = planned.dims().padded(VOCABULARY_UNIT * layout.tensor)
            micro_batches = planned.global_batch_size // layout.data
            memory = peak_memory(dims, layout, planned.length, micro_batches)
            found = check(planned, layout, memory)
            difference = found.formula / found.rehearsed - 1
            differences.append(abs(difference))
            table.append(
                {
                    "model": model,
                    "GPUs": gpus,
                    "layout": str(layout),
                    "formula GiB": found.formula / GIB,
                    "rehearsed GiB": found.rehearsed / GIB,
                    "difference": f"{difference:+.1%}",
                }
            )
    return Measurement(settings, {"largest_difference": max(differences)}, {"table": table})
