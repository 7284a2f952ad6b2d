"""Loss and gradient of fixed needles in one layout: launched by test_needle_loss."""

import json
import sys
from pathlib import Path

from megatron_longrope2 import device

RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def main() -> None:
    root, output, tensor, pipeline, context, mode = sys.argv[1:]
    device.install()
    import torch
    import torch.distributed as dist

    from megatron_longrope2.model.loading import load_model
    from megatron_longrope2.model.settings import LayoutSettings
    from megatron_longrope2.search.needle_loss import NeedleLoss
    from tests.search.tiny_model import fixed_jobs

    model = load_model(
        Path(root) / "megatron",
        LayoutSettings(
            tensor_model_parallel_size=int(tensor),
            pipeline_model_parallel_size=int(pipeline),
            context_parallel_size=int(context),
        ),
        apply_rope_fusion=False,
        **(RECOMPUTE if mode == "recompute" else {}),
    )
    samples = [sample for _, sample in fixed_jobs(Path(root))[:3]]
    report = {}
    if mode == "double":
        # The only float64 that Megatron knows: every cast to float32 is one to float64 here.
        torch.Tensor.float = torch.Tensor.double
        for chunk in model.chunks:
            chunk.double()
        report["slopes"] = slopes(NeedleLoss(model), samples)
    report["gradients"] = gradients(NeedleLoss(model), samples)
    weights = [weight for chunk in model.chunks for weight in chunk.parameters()]
    report["frozen"] = all(weight.grad is None and not weight.requires_grad for weight in weights)
    if mode == "recompute":
        report["like_a_weight"] = like_a_weight(NeedleLoss(model), samples, weights)
    Path(f"{output}.{dist.get_rank()}").write_text(json.dumps(report))
    dist.destroy_process_group()


def cases() -> dict:
    """Every shape of the parameterisation, on the tiny model's geometry."""
    from megatron_longrope2.model.learned_factors import LearnedFactors
    from megatron_longrope2.rope import make_factors
    from tests.search.tiny_model import ORIGINAL, TARGET

    geometry = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": ORIGINAL, "target_length": TARGET}
    yarn = make_factors("yarn", attention_factor=True, **geometry)
    ntk = make_factors("ntk", **geometry)
    return {
        "attention factor": LearnedFactors(yarn, learn_attention_factor=True),
        "factors only": LearnedFactors(ntk),
    }


def gradients(loss, samples) -> dict:
    """{case: [loss, gradient ...]}."""
    found = {}
    for name, learned in cases().items():
        value = loss(learned, samples)
        parameters = [one for one in learned.parameters() if one.requires_grad]
        found[name] = [value, *(number for one in parameters for number in one.grad.flatten().tolist())]
    return found


def slopes(loss, samples, width: float = 1e-5) -> dict:
    """Central differences of the loss in each parameter, in the order of `gradients`."""
    found = {}
    for name, learned in cases().items():
        found[name] = []
        for parameter in (one for one in learned.parameters() if one.requires_grad):
            numbers = parameter.data.view(-1)
            centre = numbers.tolist()
            for index in range(len(numbers)):
                values = []
                for sign in (1, -1):
                    numbers[index] = centre[index] + sign * width
                    values.append(loss(learned, samples))
                numbers[index] = centre[index]
                found[name].append((values[0] - values[1]) / (2 * width))
    return found


def like_a_weight(loss, samples, weights) -> int:
    """Tensors of a weight matrix's shape, other than the weights, that a step makes."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    shapes = {tuple(weight.shape) for weight in weights if weight.ndim == 2}
    own = {weight.untyped_storage().data_ptr() for weight in weights}

    class Watch(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple) else (result,):
                if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in own:
                    Watch.found += tuple(value.shape) in shapes or tuple(value.shape)[::-1] in shapes
            return result

    learned = next(iter(cases().values()))
    with Watch():
        loss(learned, samples)
    return Watch.found


if __name__ == "__main__":
    main()
