"""Every distinct rank of every stage of a job, rehearsed in processes of their own."""

import io
import logging
import multiprocessing
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from megatron_longrope2 import device
from megatron_longrope2.errors import InputError
from megatron_longrope2.rehearsal.result import GIB, Rehearsal
from megatron_longrope2.rehearsal.settings import Job, MachineSettings, Stage

LARGEST = 10


def rehearse(job: Job, machines: MachineSettings) -> list[Rehearsal]:
    """Run one step of every distinct rank of every stage, with tensors that have no memory.

    Raises:
        InputError: the model cannot be read, or a stage would be refused.
    """
    logging.getLogger(device.__name__).setLevel(logging.ERROR)  # that there is no GPU is no news here
    device.install()
    from megatron_longrope2.rehearsal.model import shape_arguments

    shape = shape_arguments(job.model, job.original_length)
    tasks = [
        _Task(stage, rank, role, shape, job.target_length, machines)
        for stage in job.stages
        for rank, role in distinct_ranks(stage).items()
    ]
    # Children find Megatron imported.
    import megatron_longrope2.rehearsal.stages  # noqa: F401

    found = []
    context = multiprocessing.get_context("fork")
    with context.Pool(min(machines.processes, len(tasks)), maxtasksperchild=1) as pool:
        results = pool.imap(_rehearse_rank, tasks, chunksize=1)
        for task in tqdm(tasks, desc="rehearsal", unit="rank", disable=None):
            result = next(results)
            if isinstance(result, str):
                raise InputError(f"{task.stage.name}: {result}")
            found.append(result)
    return found


def distinct_ranks(stage: Stage) -> dict[int, str]:
    """The ranks that differ in what they hold: number to role.

    Tensor- and context-parallel ranks do not: each has as many tokens, and as many keys to attend to.

    Raises:
        InputError: the layout does not divide the ranks.
    """
    from megatron_longrope2.rehearsal.stages import layout_of

    tensor, pipeline, context = layout_of(stage.words)
    split = tensor * pipeline * context
    if stage.ranks % split:
        raise InputError(f"{stage.name}: {stage.ranks} ranks are not a multiple of {split}, the layout's")
    roles = {0: "first stage" if pipeline > 1 else "every rank"}
    if pipeline > 2:
        roles[pipeline // 2 * stage.ranks // pipeline] = "middle stage"
    if pipeline > 1:
        roles[(pipeline - 1) * stage.ranks // pipeline] = "last stage"
    return roles


@dataclass(frozen=True)
class _Task:
    """What a child process is told."""

    stage: Stage
    rank: int
    role: str
    shape: dict[str, Any]
    target_length: int
    machines: MachineSettings


def has_transformer_engine(stage: Stage) -> bool:
    """Whether a stage would run on Transformer Engine's layers: in bf16, unless it says otherwise."""
    declined = "--transformer-impl local" in " ".join(stage.words).replace("=", " ")
    return "--bf16" in stage.words and not declined


def _rehearse_rank(task: _Task) -> Rehearsal | str:
    """In a process of its own: the result, or what is wrong with the input."""
    output, started = io.StringIO(), time.monotonic()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            meter = _run(task)
    except InputError as error:
        return str(error)
    except SystemExit as error:  # Megatron's way out
        raise RuntimeError(
            f"{task.stage.name}: rank {task.rank} ended itself: {output.getvalue()}"
        ) from error
    return _result(task, meter, time.monotonic() - started)


def _run(task: _Task) -> Any:
    from megatron_longrope2.rehearsal import kernels
    from megatron_longrope2.rehearsal.fake_gpu import FAKE, FakeTensors, start_rank
    from megatron_longrope2.rehearsal.meter import Meter
    from megatron_longrope2.rehearsal.stages import STAGES

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    verb, *words = task.stage.words
    start_rank(task.rank, task.stage.ranks, int(task.machines.memory * GIB))
    kernels.install(transformer_engine=has_transformer_engine(task.stage))
    meter = Meter(FAKE, task.machines.gpus_per_node)
    with FakeTensors(), meter:
        STAGES[verb](words, task.target_length, task.shape, meter)
    return meter


def _result(task: _Task, meter: Any, seconds: float) -> Rehearsal:
    from megatron_longrope2.rehearsal import kernels

    alive = meter.at_peak()
    categories: dict[str, int] = {}
    for one in alive:
        categories[one.category] = categories.get(one.category, 0) + one.size
    return Rehearsal(
        stage=task.stage.name,
        rank=task.rank,
        role=task.role,
        peak=meter.peak,
        categories=categories,
        peak_operation=meter.peak_operation,
        largest=_largest(alive),
        traffic=[
            {"collective": name, "group": group, "between_nodes": leaves, "bytes": size}
            for (name, group, leaves), size in meter.traffic.most_common()
        ],
        operations=dict(meter.operations.most_common()),
        launches=(min(meter.launches, default=0), max(meter.launches, default=0)),
        read_backs=[
            {"line": line, "times": times, "in_layer": in_layer}
            for (line, in_layer), times in meter.read_backs.most_common()
        ],
        largest_tensor=meter.largest_tensor,
        stand_ins=kernels.stand_ins(transformer_engine=has_transformer_engine(task.stage)),
        seconds=seconds,
    )


def _largest(alive: Sequence[Any]) -> list[dict[str, Any]]:
    """The tensors that take the most together, those of one line, type and shape as one entry."""
    groups: dict[Any, list[int]] = {}
    for one in alive:
        groups.setdefault((one.shape, one.dtype, one.category, one.operation, one.where), []).append(one.size)
    entries = [
        dict(zip(("shape", "dtype", "category", "operation", "where"), key, strict=True))
        | {"count": len(sizes), "bytes": sum(sizes)}
        for key, sizes in groups.items()
    ]
    return sorted(entries, key=lambda entry: -entry["bytes"])[:LARGEST]
