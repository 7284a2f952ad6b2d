"""Models of one shape with one set of weights: ours, upstream's with plain RoPE, transformers'."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from megatron_longrope2 import device

device.install()

from megatron.core.transformer.attention import SelfAttention
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.models.gpt import default_layer_spec
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_longrope2.checkpoint.architectures import ARCHITECTURES
from megatron_longrope2.checkpoint.hf_config import HFConfig, megatron_args
from megatron_longrope2.checkpoint.mapping import LAYERS
from megatron_longrope2.hf import set_factors
from megatron_longrope2.model.arguments import factors_of, model_config
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.model.layer_specs import longrope2_layer_spec
from megatron_longrope2.model.loading import build, start_megatron
from megatron_longrope2.model.pack import DocumentPack
from megatron_longrope2.rope import RopeFactors, make_factors


def start(dims: ModelDims, length: int, *, bf16: bool) -> Namespace:
    """Initialise Megatron for models of these sizes, once a process; its arguments, with NTK factors.

    Args:
        length: of the longest segment, tokens; also the factors' target length.
        bf16: weights and activations, else float32.
    """
    config, nowhere = HFConfig.of(dims), Path()
    model = megatron_args(config, dims, factors=None, params_dtype=torch.float32, tokenizer_folder=nowhere)
    run = {
        "seq_length": length,
        "micro_batch_size": 1,
        "train_iters": 1,
        "lr": 1e-3,
        "bf16": bf16,
        "tokenizer_type": "NullTokenizer",
        # It writes into the buffers of Megatron's data parallelism; these models have none.
        "gradient_accumulation_fusion": False,
    }
    args = start_megatron(**vars(model) | run)
    args.longrope2_factors = make_factors("ntk", **factors_of(args).facts).to_dict()
    return args


def our_model(args: Namespace) -> Any:
    """The model that this package trains."""
    return build(model_config(args))[0]


def upstream_model(args: Namespace) -> Any:
    """Upstream's GPTModel with plain RoPE.

    Without Transformer Engine upstream has no attention for packed documents: then this has our torch core
    attention and norms.
    """
    config = gpt_config_from_args(args)
    config.transformer_layer_spec = _upstream_layer_spec
    return build(config)[0]


def _upstream_layer_spec(config: Any, vp_stage: int | None = None) -> Any:
    if config.transformer.transformer_impl != "local":
        return default_layer_spec(config, vp_stage)
    block: Any = longrope2_layer_spec(config, vp_stage)
    block.layer_specs[0].submodules.self_attention.module = SelfAttention
    return block


def hf_model(model: Any, dims: ModelDims, factors: RopeFactors) -> Any:
    """The same weights as a transformers Llama, with the RoPE of both windows."""
    with torch.device("meta"):
        made = LlamaForCausalLM(LlamaConfig(**HFConfig.of(dims).full))
    made.load_state_dict(hf_weights(model, dims, model.state_dict()), assign=True, strict=not dims.tied)
    made.tie_weights()
    set_factors(made, factors)
    return made.train()


def hf_weights(model: Any, dims: ModelDims, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Something of each parameter, under the names of transformers' Llama, through the converters' table.

    Args:
        state: weights or gradients, by the names of the Megatron model.
    """
    saved = {checkpoint_name(model, name): value for name, value in state.items()}
    weights: dict[str, Tensor] = {}
    for mapping in ARCHITECTURES["llama"].mappings(tied=dims.tied):
        for layer in mapping.layers(dims):
            parts = mapping.to_hf(saved[mapping.megatron.replace(LAYERS, f"{LAYERS}{layer}.")], dims)
            weights |= dict(zip(mapping.hf_names(layer), parts, strict=True))
    return weights


def checkpoint_name(model: Any, name: str) -> str:
    """A parameter's name in checkpoints: Transformer Engine's; the torch spec has its own for norms."""
    names = model.decoder.layers[0].submodules_config.sharded_state_dict_keys_map
    for own, saved in names.items():
        name = name.replace(own, saved)
    return name


def set_recompute(model: Any, full: bool) -> None:
    """Let a model recompute every layer in its backward pass, or nothing."""
    if isinstance(model, LlamaForCausalLM):
        if full:
            model.gradient_checkpointing_enable()
        else:
            model.gradient_checkpointing_disable()
        return
    model.config.recompute_granularity = "full" if full else None
    model.config.recompute_method = "uniform" if full else None
    model.config.recompute_num_layers = 1 if full else None


def tokens_of(lengths: list[int], vocab_size: int) -> Tensor:
    """Random tokens of a pack, int64 [sum of lengths], on this process's device."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (sum(lengths),), generator=generator)
    return tokens.to(torch.cuda.current_device())


def mean_loss(model: Any, lengths: list[int], vocab_size: int) -> Callable[[], Tensor]:
    """The forward pass of a model on one pack of documents.

    Labels are the tokens themselves: as much work as next tokens, and the loss is a check value only.
    """
    tokens = tokens_of(lengths, vocab_size)
    if isinstance(model, LlamaForCausalLM):  # equal documents are rows of a batch, so that nothing is masked
        rows = tokens.view(len(lengths), -1)
        return lambda: F.cross_entropy(model(rows, use_cache=False).logits.flatten(0, 1).float(), tokens)
    packed, row = DocumentPack.of(tuple(lengths)), tokens[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(tokens.device)
    return lambda: model(row, positions, None, labels=row, packed_seq_params=packed).mean()


def training_step(model: Any, lengths: list[int], vocab_size: int) -> Callable[[], float]:
    """Forward and backward of a model on one pack of documents; returns the mean loss."""
    forward = mean_loss(model, lengths, vocab_size)

    def step() -> float:
        loss = forward()
        loss.backward()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
