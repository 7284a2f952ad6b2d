"""Run in a process of its own: logits of generation with the prompt read whole and in chunks.

usage: generation_worker.py OUTPUT. Saves {implementation: {chunk: logits float32 [prompts, NEW, vocabulary]}}
of the implementations of `model_worker`, with prompts in both windows and one that crosses the original
length.
"""

import sys

import torch

from megatron_longrope2 import device

device.install()

from benchmarks import models
from megatron_longrope2.evaluation.generation import generate, greedy
from megatron_longrope2.evaluation.settings import GenerationSettings
from megatron_longrope2.model.arguments import factors_of
from megatron_longrope2.model.loading import LoadedModel
from tests.gpu.model_worker import IMPLEMENTATIONS, SHAPE, TORCH, copy_weights, with_

LENGTHS, NEW, CHUNKS = (100, SHAPE.original_length - 3, 400), 6, (512, 48)


def logits_of(model: LoadedModel, chunk: int) -> torch.Tensor:
    steps: list[torch.Tensor] = []

    def recorded(logits: torch.Tensor) -> torch.Tensor:
        steps.append(logits[0].cpu())
        return greedy(logits)

    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(SHAPE.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    settings = GenerationSettings(batch_size=1, prefill_chunk=chunk)
    generate(model, prompts, NEW, choose=recorded, settings=settings)
    return torch.stack(steps).unflatten(0, (len(LENGTHS), NEW))


if __name__ == "__main__":
    args = models.start(SHAPE, 512, bf16=device.has_gpu())
    first = models.our_model(with_(args, TORCH))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # as made, attention hardly matters
    results = {}
    for name, changes in IMPLEMENTATIONS.items():
        model = models.our_model(with_(args, changes))
        copy_weights(first, model)
        loaded = LoadedModel([model.eval()], args, factors_of(args))
        results[name] = {chunk: logits_of(loaded, chunk) for chunk in CHUNKS}
    torch.save(results, sys.argv[1])
