"""Scores fixed pairs on a checkpoint in one layout and writes the losses: launched by test_factors."""

import json
import sys
from pathlib import Path

from megatron_longrope2 import device


def main() -> None:
    root, output, *layout = sys.argv[1:]
    device.install()
    import torch.distributed as dist

    from megatron_longrope2.model.loading import load_model
    from megatron_longrope2.model.settings import LayoutSettings
    from megatron_longrope2.scoring.megatron import MegatronScorer
    from tests.search.tiny_model import fixed_jobs

    tensor, pipeline, context, *extra = layout
    model = load_model(
        Path(root) / "megatron",
        LayoutSettings(
            tensor_model_parallel_size=int(tensor),
            pipeline_model_parallel_size=int(pipeline),
            context_parallel_size=int(context),
        ),
        sequence_parallel=bool(extra),
    )
    jobs = fixed_jobs(Path(root))
    losses = score(MegatronScorer(model), jobs)
    whole = score(MegatronScorer(model, restrict_last_layer=False), jobs)
    again = score(MegatronScorer(model), jobs[::-1])[::-1]
    report = {"losses": losses, "whole_last_layer": whole, "again": again, "largest": None}
    if dist.get_world_size() == 1:
        report["largest"] = largest_tensor(MegatronScorer(model), jobs[:1])
    Path(f"{output}.{dist.get_rank()}").write_text(json.dumps(report))
    dist.destroy_process_group()


def score(scorer, jobs) -> list[float]:
    """Summed negative log-likelihood of each (factors, sample)."""
    factors, samples = zip(*jobs, strict=True)
    return [found.total for found in scorer(samples, factors)]


def largest_tensor(scorer, jobs) -> int:
    """Elements of the largest tensor with the vocabulary (384, padded) as its last dimension."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple) else (result,):
                if isinstance(value, torch.Tensor) and value.ndim and value.shape[-1] == 384:
                    Watch.largest = max(Watch.largest, value.numel())
            return result

    with Watch():
        score(scorer, jobs)
    return Watch.largest


if __name__ == "__main__":
    main()
