"""Feasible layouts of a run with memory and time, which one to take, and why."""

from dataclasses import asdict, dataclass
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.planning.layout import Layout, layouts
from megatron_longrope2.planning.memory import GIB, Memory, peak_memory
from megatron_longrope2.planning.model import VOCABULARY_UNIT
from megatron_longrope2.planning.speed import (
    Gpu,
    Step,
    attention_operations,
    linear_operations,
    step_time,
)

USABLE = 0.9
"""Share of a GPU's memory that is planned with; CUDA, NCCL and fragmentation have the rest."""

NEARLY = 1.05
"""Layouts within this of the fastest are taken as equally fast: the formula is no better."""

ROOMY = 2 / 3
"""Of equally fast layouts those are preferred that fill at most this share of the memory."""

_SIMPLER = {"none": 0, "mlp": 1, "full": 2}


@dataclass(frozen=True)
class Job:
    """What is to be planned.

    Attributes:
        length: tokens of a segment.
        gpus, gpus_per_node: how many there are.
        memory: of a GPU, GiB.
        tokens: of the run.
        global_batch_size: segments of an optimizer step.
        long_share: of the segments that belong to the long window.
    """

    model: ModelDims
    gpu: Gpu
    length: int
    gpus: int
    memory: float
    tokens: float
    global_batch_size: int = 64
    long_share: float = 0.7
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        for name in ("length", "gpus", "memory", "tokens", "global_batch_size", "gpus_per_node"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: {getattr(self, name)} is not above 0")
        if not 0 <= self.long_share <= 1:
            raise InputError(f"long_share: {self.long_share} is not between 0 and 1")


@dataclass(frozen=True)
class Row:
    """A layout that fits."""

    layout: Layout
    memory: Memory
    step: Step
    hours: float
    utilisation: float
    """Share of the GPUs' peak that the model's own operations (MFU) reach."""


def plan(job: Job) -> list[Row]:
    """Every layout that fits, the recommended one first, then by time.

    Raises:
        InputError: none fits; the smallest one is named.
    """
    rows, smallest = [], None
    for layout in layouts(job.model, job.length, job.gpus, job.gpus_per_node, job.global_batch_size):
        model = job.model.padded(VOCABULARY_UNIT * layout.tensor)
        memory = peak_memory(model, layout, job.length, job.global_batch_size // layout.data)
        smallest = min(smallest or memory.total, memory.total)
        if memory.total <= USABLE * job.memory * GIB:
            rows.append(_row(job, model, layout, memory))
    if smallest is None:
        raise InputError(
            f"gpus: no layout of {job.gpus} suits {job.model.name} with {job.length} tokens and a global "
            f"batch of {job.global_batch_size}; change the number of GPUs or the batch"
        )
    if not rows:
        raise InputError(
            f"memory: no layout of {job.gpus} GPUs fits into {USABLE:.0%} of {job.memory:g} GiB; the "
            f"smallest needs {smallest / GIB:.0f} GiB: use more GPUs"
        )
    rows.sort(key=lambda row: row.hours)
    best = min(
        (row for row in rows if row.hours <= NEARLY * rows[0].hours),
        key=lambda row: (
            row.layout.pipeline,
            _SIMPLER[row.layout.recompute],
            row.memory.total > ROOMY * job.memory * GIB,
            row.hours,
        ),
    )
    return [best, *(row for row in rows if row is not best)]


def reasons(rows: list[Row], job: Job) -> str:
    """Why the first row is recommended, in one sentence a line."""
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
        f"{_name(best.layout)} takes {best.hours:.1f} h and {best.memory.total / GIB:.0f} of "
        f"{job.memory:g} GiB; {len(rows)} layouts fit, the slowest takes "
        f"{max(row.hours for row in rows):.1f} h."
    ]
    if best is not fastest:
        lines.append(
            f"{_name(fastest.layout)} is {best.hours / fastest.hours - 1:.1%} faster by the formula, within "
            f"the formula's error; it has more pipeline stages or recomputation, or fills "
            f"{fastest.memory.total / GIB:.0f} GiB."
        )
    lines.append(
        f"Arithmetic is {(step.linear + step.attention) / step.total:.0%} of a step of {step.total:.0f} s; "
        f"the largest loss is {largest} with {waiting[largest] / step.total:.0%}."
    )
    return "\n".join(lines)


def table(rows: list[Row], top: int) -> str:
    """The rows as aligned lines."""
    head = (
        "TP",
        "CP",
        "PP",
        "DP",
        "recompute",
        "GiB",
        "states",
        "activations",
        "logits",
        "s/step",
        "MFU",
        "hours",
    )
    lines: list[tuple[str, ...]] = [head]
    for row in rows[:top]:
        layout, memory = row.layout, row.memory
        sizes = (memory.total, memory.weights_and_optimizer, memory.activations, memory.logits)
        lines.append(
            (
                *map(str, (layout.tensor, layout.context, layout.pipeline, layout.data, layout.recompute)),
                *(f"{size / GIB:.1f}" for size in sizes),
                f"{row.step.total:.1f}",
                f"{row.utilisation:.0%}",
                f"{row.hours:.1f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def to_dict(rows: list[Row], job: Job) -> dict[str, Any]:
    """JSON-ready: the job, and every layout with bytes, seconds and Megatron's arguments."""
    return {
        "job": asdict(job),
        "why": reasons(rows, job),
        "layouts": [
            {
                **asdict(row.layout),
                "arguments": row.layout.arguments(),
                "memory_bytes": {**asdict(row.memory), "total": row.memory.total},
                "step_seconds": {**asdict(row.step), "total": row.step.total},
                "utilisation": row.utilisation,
                "hours": row.hours,
            }
            for row in rows
        ],
    }


def _row(job: Job, model: ModelDims, layout: Layout, memory: Memory) -> Row:
    step = step_time(
        model,
        layout,
        job.gpu,
        length=job.length,
        global_batch_size=job.global_batch_size,
        long_share=job.long_share,
        gpus_per_node=job.gpus_per_node,
    )
    batch_tokens = job.length * job.global_batch_size
    short = min(model.original_length, job.length)
    mean_span = job.long_share * job.length + (1 - job.long_share) * short
    operations = linear_operations(model, batch_tokens) + attention_operations(
        model, batch_tokens * mean_span
    )
    return Row(
        layout=layout,
        memory=memory,
        step=step,
        hours=job.tokens / batch_tokens * step.total / 3600,
        utilisation=operations / step.total / job.gpus / job.gpu.peak,
    )


def _name(layout: Layout) -> str:
    sizes = {"TP": layout.tensor, "CP": layout.context, "PP": layout.pipeline, "DP": layout.data}
    name = " x ".join(f"{kind}{size}" for kind, size in sizes.items() if size > 1) or "one GPU"
    return name if layout.recompute == "none" else f"{name} with {layout.recompute} recomputation"
