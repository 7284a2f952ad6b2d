"""Training throughput of a model's layers at long lengths: ours, upstream's plain RoPE, and transformers.

A step is forward and backward of one segment in bf16, with a layer-wise recomputation where the planner says
that it is needed; the optimizer's update, whose time no length changes, is left out. Documents are one a
segment (long window), and as long as the original length in the `short_` packs. Model operations of a step,
whatever is recomputed: 6 x tokens x parameters of the matrices, and 6 x layers x query size x the sum over
documents of length squared (causal attention). `ceiling_share_LENGTH` is their rate over that of a matrix
product of 8192 x 8192 x 8192 measured before. All models have the same weights and take turns; the fastest
step of each counts. A transformers model that does not fit is left out.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megatron_longrope2.benchmarks import Measurement, alternate
from megatron_longrope2.files import write_text
from megatron_longrope2.model.dims import ModelDims

MEMORY_SHARE = 0.9
"""Of the GPU's memory, that a plan may fill."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this benchmark."""
    add = parser.add_argument
    add("--model", default="llama3-8b", help="shape: a preset, a Hugging Face folder or a checkpoint")
    add(
        "--num-layers",
        type=int,
        metavar="N",
        help="layers; None: as many as the planner fits on the GPU with Adam's states",
    )
    add(
        "--vocab-size",
        type=int,
        default=16128,
        metavar="N",
        help="of the model. LLaMA3's logits of 128K tokens fit on no single GPU; the default is the share of "
        "one rank of eight",
    )
    add(
        "--lengths",
        type=int,
        nargs="+",
        default=[8192, 32768, 65536, 131072],
        metavar="TOKENS",
        help="of segments; the longest also as short packs",
    )
    add("--repeats", type=int, default=3, metavar="N", help="measurements of each; the fastest counts")
    add("--profile", metavar="FILE", help="text file for the kernels of our longest step; None: no profile")


def measure(args: Namespace) -> Measurement:
    """Build the models and time their steps, length by length.

    Raises:
        InputError: an unknown model.
    """
    from megatron_longrope2 import device

    device.install()
    import torch

    from megatron_longrope2.benchmarks import _models
    from megatron_longrope2.model.arguments import factors_of
    from megatron_longrope2.planning.model import load_shape

    shape = replace(load_shape(args.model), vocab_size=args.vocab_size).padded(128)
    memory = MEMORY_SHARE * torch.cuda.mem_get_info()[1] if device.has_gpu() else float("inf")
    longest = max(args.lengths)
    layers = args.num_layers or fitting_layers(shape, longest, memory)
    shape = replace(shape, num_layers=layers)
    ceiling = matmul_rate(8192 if device.has_gpu() else 256)
    megatron_args = _models.start_megatron(shape, longest, bf16=True)
    models = {"ours": _models.our_model(megatron_args), "upstream": _models.upstream_model(megatron_args)}
    models["upstream"].load_state_dict(models["ours"].state_dict())
    models["transformers"] = _models.hf_model(models["ours"], shape, factors_of(megatron_args))
    packs = {label(length): [length] for length in sorted(args.lengths)}
    original = shape.original_length
    packs[f"short_{label(longest)}"] = [original] * (longest // original)
    cases = {
        name: _measure_case(models, shape, lengths, memory, args.repeats) for name, lengths in packs.items()
    }
    if args.profile:
        _models.set_recompute(models["ours"], cases[label(longest)]["recompute"] == "full")
        _write_profile(args.profile, _models.training_step(models["ours"], [longest], shape.vocab_size))
    return Measurement(
        settings={
            "model": args.model,
            "shape": vars(shape),
            "lengths": args.lengths,
            "repeats": args.repeats,
            "transformer_impl": megatron_args.transformer_impl,
        },
        ratios=_ratios(cases, ceiling),
        measured={
            "matmul_operations_per_second": ceiling,
            "cases": cases,
            "table": [row for name, case in cases.items() for row in _rows(name, case, ceiling)],
        },
    )


def label(length: int) -> str:
    """131072 is 128k; what is no multiple of 1024 stays as it is."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def model_operations(shape: ModelDims, lengths: list[int]) -> float:
    """Operations that a step on documents of these lengths needs, recomputation not counted."""
    from megatron_longrope2.planning.speed import attention_operations, linear_operations

    squared = sum(length**2 for length in lengths)
    return linear_operations(shape, sum(lengths)) + attention_operations(shape, squared)


def fits(shape: ModelDims, length: int, memory: float, *, recompute: bool) -> bool:
    """Whether training segments of `length` tokens with Adam takes at most `memory` bytes of one GPU."""
    from megatron_longrope2.planning.layout import Layout
    from megatron_longrope2.planning.memory import peak_memory

    layout = Layout(1, 1, 1, 1, "full" if recompute else "none")
    return peak_memory(shape, layout, length, 1).total <= memory


def fitting_layers(shape: ModelDims, length: int, memory: float) -> int:
    """As many of the shape's layers as fit when all are recomputed, at least one."""
    numbers = range(shape.num_layers, 1, -1)
    fitting = (n for n in numbers if fits(replace(shape, num_layers=n), length, memory, recompute=True))
    return next(fitting, 1)


def matmul_rate(size: int, products: int = 10, rounds: int = 5) -> float:
    """Operations a second of bf16 products of [size, size] matrices: the fastest of the rounds."""
    import torch

    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=torch.cuda.current_device()) for _ in "ab")

    def multiply() -> None:
        for _ in range(products):
            a @ b

    multiply()
    seconds = alternate({"matmul": multiply}, rounds)["matmul"]
    return 2 * size**3 * products / min(seconds)


def _measure_case(
    models: dict[str, Any], shape: ModelDims, lengths: list[int], memory: float, repeats: int
) -> dict[str, Any]:
    """Losses, peak memory and seconds of every model on one pack."""
    from megatron_longrope2.benchmarks import _models

    tokens = sum(lengths)
    recompute = not fits(shape, tokens, memory, recompute=False)
    steps: dict[str, Callable[[], float]] = {}
    losses, peaks = {}, {}
    for name, model in models.items():
        _models.set_recompute(model, recompute)
        make = _models.hf_training_step if name == "transformers" else _models.training_step
        steps[name] = make(model, lengths, shape.vocab_size)
        found = _first_step(steps[name], optional=name == "transformers")
        if found is None:
            del steps[name]
            continue
        others = sum(_bytes(other) for other in models.values() if other is not model)
        losses[name], peaks[name] = found[0], max(0, found[1] - others)
    return {
        "documents": len(lengths),
        "tokens": tokens,
        "recompute": "full" if recompute else "none",
        "model_operations": model_operations(shape, lengths),
        "losses": losses,
        "peak_memory_bytes": peaks,
        "seconds": alternate(steps, repeats),
    }


def _first_step(step: Callable[[], float], *, optional: bool) -> tuple[float, int] | None:
    """Loss and peak memory of the step that warms up; None if it may run out of memory and does."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        return step(), torch.cuda.max_memory_allocated()
    except torch.OutOfMemoryError:
        if not optional:
            raise
        return None


def _bytes(model: Any) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _ratios(cases: dict[str, dict[str, Any]], ceiling: float) -> dict[str, float]:
    ratios = {}
    for name, case in cases.items():
        seconds = {who: min(times) for who, times in case["seconds"].items()}
        ours = seconds.pop("ours")
        ratios[f"ceiling_share_{name}"] = case["model_operations"] / ours / ceiling
        ratios |= {f"step_time_vs_{who}_{name}": ours / other for who, other in seconds.items()}
    return ratios


def _rows(pack: str, case: dict[str, Any], ceiling: float) -> list[dict[str, Any]]:
    """What a reader wants to see of a case: a row a model."""
    return [
        {
            "pack": pack,
            "recompute": case["recompute"],
            "model": name,
            "seconds": round(min(times), 3),
            "tokens/s": round(case["tokens"] / min(times)),
            "model TFLOP/s": round(case["model_operations"] / min(times) / 1e12, 1),
            "share of the ceiling": f"{case['model_operations'] / min(times) / ceiling:.1%}",
            "peak GB": round(case["peak_memory_bytes"][name] / 1e9, 1),
        }
        for name, times in case["seconds"].items()
    ]


def _write_profile(path: str, step: Callable[[], float]) -> None:
    """Where a step's time goes, by kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
        step()
    order = f"self_{'cuda' if gpu else 'cpu'}_time_total"
    write_text(path, found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90))
