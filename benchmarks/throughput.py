"""Measure training throughput of a model's layers at long lengths: ours, upstream's and transformers'.

A step is forward and backward of one segment in bf16, with recomputation of every layer where the planner
says that it is needed; the optimizer's update, whose time no length changes, is left out. There is one
document per segment (the long window), and in `short_` packs documents are as long as the original window.
The model operations of a step, whatever is recomputed, are 6 x tokens x parameters of the matrices plus
6 x layers x query size x the sum over documents of length squared (causal attention). `ceiling_share_LENGTH`
is their rate over that of a matrix product of 8192 x 8192 x 8192 measured before. All models have the same
weights and take turns; the fastest step of each counts. A transformers model that does not fit is left out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cyclopts.types import PositiveInt
from torch.profiler import ProfilerActivity, profile

from benchmarks import models as build
from benchmarks.measuring import Measurement, Output, in_turns, label
from megatron_longrope2 import device
from megatron_longrope2.files import write_text
from megatron_longrope2.model.arguments import factors_of
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.planning.layout import Layout
from megatron_longrope2.planning.memory import peak_memory
from megatron_longrope2.planning.plan import VOCABULARY_UNIT
from megatron_longrope2.planning.settings import load_dims
from megatron_longrope2.planning.speed import attention_operations, linear_operations

MEMORY_SHARE = 0.9  # of the GPU's memory, that a plan may fill


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Model, lengths and repetitions.

    Attributes:
        model: The sizes of the model: a preset of `longrope2 plan`, a Hugging Face folder or a checkpoint.
        num_layers: The number of layers. Without this option they are as many as the planner fits on the GPU
            together with Adam's states.
        vocab_size: The size of the vocabulary. LLaMA3's logits of 128K tokens fit on no single GPU; the
            default is the share of one tensor-parallel rank of eight.
        lengths: The segment lengths in tokens; the longest is also measured as a pack of short documents.
        repeats: How often each is measured; the fastest counts.
        profile: A text file to write, with the time of our longest step by kernel.
    """

    model: str = "llama3-8b"
    num_layers: PositiveInt | None = None
    vocab_size: PositiveInt = 16128
    lengths: tuple[PositiveInt, ...] = (8192, 32768, 65536, 131072)
    repeats: PositiveInt = 3
    profile: Path | None = None


def measure(*, settings: Settings) -> Measurement:
    """Build the models and time their steps, length by length.

    Raises:
        InputError: an unknown model.
    """
    dims = replace(load_dims(settings.model), vocab_size=settings.vocab_size).padded(VOCABULARY_UNIT)
    memory = MEMORY_SHARE * torch.cuda.mem_get_info()[1] if device.has_gpu() else math.inf
    longest, original = max(settings.lengths), dims.original_length
    dims = replace(dims, num_layers=settings.num_layers or fitting_layers(dims, longest, memory))
    ceiling = matmul_rate(8192 if device.has_gpu() else 256)
    args = build.start(dims, longest, bf16=True)
    models = {"ours": build.our_model(args), "upstream": build.upstream_model(args)}
    models["upstream"].load_state_dict(models["ours"].state_dict())
    models["transformers"] = build.hf_model(models["ours"], dims, factors_of(args))
    packs = {label(length): [length] for length in sorted(settings.lengths)}
    packs[f"short_{label(longest)}"] = [original] * (longest // original)
    rows = []
    for pack, lengths in packs.items():
        recompute = not fits(dims, sum(lengths), memory, recompute=False)
        about = {"pack": pack, "documents": len(lengths), "recompute": "full" if recompute else "none"}
        for model in models.values():
            build.set_recompute(model, recompute)
        measured = _measure_pack(models, dims, lengths, settings.repeats, ceiling)
        rows += [about | row for row in measured]
    if settings.profile:
        step = build.training_step(models["ours"], [longest], dims.vocab_size)
        write_text(settings.profile, time_by_kernel(step))
    return Measurement(
        settings,
        ratios=_ratios(rows),
        measured={
            "model": vars(dims),
            "transformer_impl": args.transformer_impl,
            "matmul_operations_per_second": ceiling,
            "table": rows,
        },
    )


def model_operations(dims: ModelDims, lengths: list[int]) -> float:
    """Operations that a step on documents of these lengths needs, recomputation not counted."""
    squared = sum(length**2 for length in lengths)
    return linear_operations(dims, sum(lengths)) + attention_operations(dims, squared)


def fits(dims: ModelDims, length: int, memory: float, *, recompute: bool) -> bool:
    """Whether training segments of `length` tokens with Adam takes at most `memory` bytes of one GPU."""
    layout = Layout(1, 1, 1, 1, "full" if recompute else "none")
    return peak_memory(dims, layout, length, 1).total <= memory


def fitting_layers(dims: ModelDims, length: int, memory: float) -> int:
    """As many of the model's layers as fit when all are recomputed, at least one."""
    numbers = range(dims.num_layers, 1, -1)
    fitting = (n for n in numbers if fits(replace(dims, num_layers=n), length, memory, recompute=True))
    return next(fitting, 1)


def matmul_rate(size: int, products: int = 10, rounds: int = 5) -> float:
    """Operations a second of bf16 products of [size, size] matrices: the fastest of the rounds."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=torch.cuda.current_device()) for _ in "ab")

    def multiply() -> None:
        for _ in range(products):
            a @ b

    multiply()
    return 2 * size**3 * products / in_turns({"matmul": multiply}, rounds)["matmul"]


def _measure_pack(
    models: dict[str, Any], dims: ModelDims, lengths: list[int], repeats: int, ceiling: float
) -> Iterator[dict[str, Any]]:
    """A row for each model: loss, fastest step, its rates, and peak memory."""
    steps, losses, peaks = {}, {}, {}
    for name, model in models.items():
        step = build.training_step(model, lengths, dims.vocab_size)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            losses[name] = step()
        except torch.OutOfMemoryError:
            if name != "transformers":
                raise
        else:
            steps[name], peaks[name] = step, torch.cuda.max_memory_allocated()
    sizes = {name: sum(one.nbytes for one in model.parameters()) for name, model in models.items()}
    operations = model_operations(dims, lengths)
    for name, seconds in in_turns(steps, repeats).items():
        yield {
            "model": name,
            "loss": losses[name],
            "seconds": seconds,
            "tokens/s": sum(lengths) / seconds,
            "model TFLOP/s": operations / seconds / 1e12,
            "share of the ceiling": operations / seconds / ceiling,
            "peak GB": max(0.0, (peaks[name] - sum(sizes.values()) + sizes[name]) / 1e9),
        }


def time_by_kernel(step: Callable[[], float]) -> str:
    """A table of the 25 kernels in which a step spends most time."""
    activity, name = (ProfilerActivity.CUDA, "device") if device.has_gpu() else (ProfilerActivity.CPU, "cpu")
    with profile(activities=[activity]) as found:
        step()
    order = f"self_{name}_time_total"
    return found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90)


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    ours = {row["pack"]: row for row in rows if row["model"] == "ours"}
    ratios = {f"ceiling_share_{pack}": row["share of the ceiling"] for pack, row in ours.items()}
    return ratios | {
        f"step_time_vs_{row['model']}_{row['pack']}": ours[row["pack"]]["seconds"] / row["seconds"]
        for row in rows
        if row["model"] != "ours"
    }
