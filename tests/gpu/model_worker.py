"""Run in a process of its own: one tiny model in every implementation that is here, on every kind of pack.

usage: model_worker.py OUTPUT. Saves {implementation: {pack: {"loss": float, "gradients": {name: tensor}}}}.
`reference` is transformers in float32, document by document, with the weights that all have. Implementations
are the torch spec and, where Transformer Engine is installed, its spec without and with fused RoPE: in bf16
on a GPU, else in float32.
"""

import importlib.util
import sys
from argparse import Namespace
from typing import Any

import torch

from megatron_longrope2 import device

device.install()

from benchmarks import models
from megatron_longrope2.model.arguments import factors_of
from megatron_longrope2.model.dims import ModelDims

SHAPE = ModelDims("tiny", 2, 256, 512, 4, 2, 64, 512, 128)
PACKS = {
    "short window": [128, 30, 98],
    "long window": [512],
    "long documents": [300, 212],
    "both windows": [300, 128, 84],
}
TORCH: dict[str, Any] = {
    "transformer_impl": "local",
    "apply_rope_fusion": False,
    "no_persist_layer_norm": True,
}
ENGINE: dict[str, Any] = {"transformer_impl": "transformer_engine", "no_persist_layer_norm": False}
IMPLEMENTATIONS = {"torch": TORCH}
if device.has_gpu() and importlib.util.find_spec("transformer_engine"):
    IMPLEMENTATIONS |= {
        "Transformer Engine": ENGINE | {"apply_rope_fusion": False},
        "Transformer Engine, fused RoPE": ENGINE | {"apply_rope_fusion": True},
    }


def gradients_on(model: Any, lengths: list[int]) -> dict[str, Any]:
    """Loss and gradients of a Megatron model, under transformers' names."""
    loss = models.mean_loss(model, lengths, SHAPE.vocab_size)()
    loss.backward()
    found = {name: parameter.grad.float().cpu() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {"loss": float(loss.detach()), "gradients": models.hf_weights(model, SHAPE, found)}


def reference_on(model: Any, lengths: list[int]) -> dict[str, Any]:
    """The same of the transformers model, one document at a time."""
    total = 0.0
    for tokens in models.tokens_of(lengths, SHAPE.vocab_size).split(lengths):
        logits = model(tokens[None], use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, tokens, reduction="sum") / sum(lengths)
        loss.backward()
        total += float(loss.detach())
    found = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {"loss": total, "gradients": found}


@torch.no_grad()
def copy_weights(source: Any, target: Any) -> None:
    """From one layer spec to another."""
    saved = {models.checkpoint_name(source, name): value for name, value in source.named_parameters()}
    for name, parameter in target.named_parameters():
        parameter.copy_(saved[models.checkpoint_name(target, name)])


def with_(args: Namespace, changes: dict[str, Any]) -> Namespace:
    return Namespace(**{**vars(args), **changes})


if __name__ == "__main__":
    args = models.start(SHAPE, max(map(sum, PACKS.values())), bf16=device.has_gpu())
    first = models.our_model(with_(args, TORCH))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # as made, attention hardly matters
    reference = models.hf_model(first, SHAPE, factors_of(args)).float()
    results = {"reference": {name: reference_on(reference, lengths) for name, lengths in PACKS.items()}}
    for name, changes in IMPLEMENTATIONS.items():
        model = models.our_model(with_(args, changes))
        copy_weights(first, model)
        results[name] = {pack: gradients_on(model, lengths) for pack, lengths in PACKS.items()}
    torch.save(results, sys.argv[1])
