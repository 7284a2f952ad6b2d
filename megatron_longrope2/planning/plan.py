"""Feasible layouts of a run with memory and time, which one to take, and why."""

from dataclasses import asdict, astuple, dataclass
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.planning.layout import RECOMPUTE_ARGUMENTS, Layout, layouts
from megatron_longrope2.planning.memory import GIB, Memory, peak_memory
from megatron_longrope2.planning.settings import PlanSettings
from megatron_longrope2.planning.speed import Step, step_time
from megatron_longrope2.tables import text_table

# Megatron pads the vocabulary to a multiple of this times the tensor parallel size.
VOCABULARY_UNIT = 128

# Share of a GPU's memory that is planned with; CUDA, NCCL and fragmentation have the rest.
USABLE = 0.9

# Layouts within this of the fastest are taken as equally fast: the formula is no better.
NEARLY = 1.05

# Among equally fast layouts, those are preferred that fill at most this share of the memory.
ROOMY = 2 / 3

UNCALIBRATED = (
    "The hours are of a formula that is not calibrated: multiply them by the measured over the planned "
    "seconds of your run's first steps."
)


@dataclass(frozen=True)
class Row:
    """A layout that fits, with the hours of the whole run by the uncalibrated time model."""

    layout: Layout
    memory: Memory
    step: Step
    hours: float


def plan(settings: PlanSettings, activation_scale: float = 1.0) -> list[Row]:
    """Every layout that fits, the recommended one first, then by time.

    Args:
        activation_scale: what the formula's activations and logits are multiplied by.

    Raises:
        InputError: none fits; the smallest one is named.
    """
    dims, rows, smallest = settings.dims(), [], None
    steps = settings.tokens / (settings.length * settings.global_batch_size)
    for layout in layouts(dims, settings):
        model = dims.padded(VOCABULARY_UNIT * layout.tensor)
        micro_batches = settings.global_batch_size // layout.data
        memory = peak_memory(model, layout, settings.length, micro_batches).scaled(activation_scale)
        smallest = min(smallest or memory.total, memory.total)
        if memory.total <= USABLE * settings.memory * GIB:
            step = step_time(model, layout, settings)
            rows.append(Row(layout, memory, step, hours=steps * step.total / 3600))
    if smallest is None:
        raise InputError(
            f"--gpus: no layout of {settings.gpus} suits {dims.name} with {settings.length} tokens and a "
            f"global batch of {settings.global_batch_size}; change the number of GPUs or the batch"
        )
    if not rows:
        raise InputError(
            f"--memory: no layout of {settings.gpus} GPUs fits into {USABLE:.0%} of {settings.memory:g} GiB; "
            f"the smallest needs {smallest / GIB:.0f} GiB: use more GPUs"
        )
    rows.sort(key=lambda row: row.hours)
    best = min(
        (row for row in rows if row.hours <= NEARLY * rows[0].hours),
        key=lambda row: (
            row.layout.pipeline,
            list(RECOMPUTE_ARGUMENTS).index(row.layout.recompute),
            row.memory.total > ROOMY * settings.memory * GIB,
            row.hours,
        ),
    )
    return [best, *(row for row in rows if row is not best)]


def reasons(rows: list[Row], settings: PlanSettings) -> str:
    """Why the first row is recommended: one sentence per line."""
    best, fastest = rows[0], min(rows, key=lambda row: row.hours)
    step = best.step
    waiting = {
        "tensor-parallel traffic": step.tensor,
        "context-parallel traffic": step.context,
        "data-parallel traffic": step.data,
        "uneven windows": step.imbalance,
        "the pipeline's bubble": step.bubble,
    }
    largest = max(waiting, key=lambda name: waiting[name])
    lines = [
        f"{best.layout} takes {best.hours:.1f} h and {best.memory.total / GIB:.0f} of "
        f"{settings.memory:g} GiB; {len(rows)} layouts fit, the slowest takes "
        f"{max(row.hours for row in rows):.1f} h."
    ]
    if best is not fastest:
        lines.append(
            f"{fastest.layout} is {best.hours / fastest.hours - 1:.1%} faster by the formula, within "
            f"the formula's error; it has more pipeline stages or recomputation, or fills "
            f"{fastest.memory.total / GIB:.0f} GiB."
        )
    lines.append(
        f"Arithmetic is {(step.linear + step.attention) / step.total:.0%} of a step of {step.total:.0f} s; "
        f"the largest loss is {largest} with {waiting[largest] / step.total:.0%}."
    )
    return "\n".join([*lines, UNCALIBRATED])


def table(rows: list[Row]) -> str:
    """The rows as aligned lines."""
    header = "TP CP PP DP recompute GiB states activations logits s/step hours".split()
    lines = [
        [
            *astuple(row.layout),
            f"{row.memory.total / GIB:.1f}",
            *(f"{size / GIB:.1f}" for size in astuple(row.memory)),
            f"{row.step.total:.1f}",
            f"{row.hours:.1f}",
        ]
        for row in rows
    ]
    return text_table(header, lines, left=0)


def to_dict(rows: list[Row], settings: PlanSettings) -> dict[str, Any]:
    """JSON-ready: the settings, and every layout with bytes, seconds and Megatron's arguments."""
    return {
        "settings": asdict(settings),
        "why": reasons(rows, settings),
        "layouts": [
            {
                **asdict(row.layout),
                "arguments": row.layout.arguments(),
                "memory_bytes": {**asdict(row.memory), "total": row.memory.total},
                "step_seconds": {**asdict(row.step), "total": row.step.total},
                "hours": row.hours,
            }
            for row in rows
        ],
    }
