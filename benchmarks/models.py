"""Models of one shape with one set of weights: ours, upstream's with plain RoPE, transformers'."""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention
from megatron.core.utils import unwrap_model
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.initialize import initialize_megatron
from megatron.training.models.gpt import default_layer_spec
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_longrope2.checkpoint.architectures import ARCHITECTURES
from megatron_longrope2.checkpoint.mapping import LAYERS
from megatron_longrope2.device import rendezvous_store
from megatron_longrope2.hf import set_factors
from megatron_longrope2.model.arguments import model_config, parse_model_arguments
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.model.layer_specs import longrope2_layer_spec
from megatron_longrope2.model.pack import DocumentPack
from megatron_longrope2.rope import RopeFactors, make_factors

ROPE_BASE = 10000.0


def start_megatron(dims: ModelDims, length: int, *, bf16: bool) -> Namespace:
    """Initialise Megatron for models of these sizes, once a process; its arguments, with NTK factors.

    Args:
        length: of the longest segment, tokens; also the factors' target length.
        bf16: weights and activations, else float32.
    """
    with patch.object(sys, "argv", ["benchmark", *_arguments(dims, length, bf16)]):
        args = parse_model_arguments()
    args.longrope2_factors = make_factors(
        "ntk",
        rope_base=ROPE_BASE,
        rotary_dim=dims.kv_channels,
        original_length=dims.original_length,
        target_length=length,
    ).to_dict()
    initialize_megatron(allow_no_cuda=True, store=rendezvous_store())
    return args


def _arguments(dims: ModelDims, length: int, bf16: bool) -> list[str]:
    # Fused accumulation writes into the buffers of Megatron's data parallelism; these models have none.
    grouped = dims.num_query_groups != dims.num_attention_heads
    return f"""
        --num-layers {dims.num_layers} --hidden-size {dims.hidden_size} --kv-channels {dims.kv_channels}
        --num-attention-heads {dims.num_attention_heads} --ffn-hidden-size {dims.ffn_hidden_size} --swiglu
        {f"--group-query-attention --num-query-groups {dims.num_query_groups}" if grouped else ""}
        {"" if dims.tied else "--untie-embeddings-and-output-weights"}
        --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
        --rotary-base {ROPE_BASE:.0f} --max-position-embeddings {dims.original_length}
        --seq-length {length} --vocab-size {dims.vocab_size} --tokenizer-type NullTokenizer
        --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 1 --train-iters 1 --lr 1e-3
        --no-gradient-accumulation-fusion
        {"--bf16" if bf16 else ""}
        {"" if importlib.util.find_spec("transformer_engine") else "--transformer-impl local"}
    """.split()


def our_model(args: Namespace) -> Any:
    """The model that this package trains."""
    return _build(model_config(args))


def upstream_model(args: Namespace) -> Any:
    """Upstream's GPTModel with plain RoPE.

    Without Transformer Engine upstream has no attention for packed documents: then this has our torch core
    attention and norms.
    """
    config = gpt_config_from_args(args)
    config.transformer_layer_spec = _upstream_layer_spec
    return _build(config)


def _build(config: Any) -> Any:
    chunks = config.get_builder_cls()(config).build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(), wrap_with_ddp=False
    )
    return unwrap_model(chunks)[0]


def _upstream_layer_spec(config: Any, vp_stage: int | None = None) -> Any:
    if config.transformer.transformer_impl != "local":
        return default_layer_spec(config, vp_stage)
    block: Any = longrope2_layer_spec(config, vp_stage)
    block.layer_specs[0].submodules.self_attention.module = SelfAttention
    return block


def hf_model(model: Any, dims: ModelDims, factors: RopeFactors) -> Any:
    """The same weights as a transformers Llama, with the RoPE of both windows."""
    config = LlamaConfig(
        vocab_size=dims.vocab_size,
        hidden_size=dims.hidden_size,
        intermediate_size=dims.ffn_hidden_size,
        num_hidden_layers=dims.num_layers,
        num_attention_heads=dims.num_attention_heads,
        num_key_value_heads=dims.num_query_groups,
        head_dim=dims.kv_channels,
        max_position_embeddings=factors.target_length,
        rope_parameters={"rope_type": "default", "rope_theta": factors.rope_base},
        rms_norm_eps=model.config.layernorm_epsilon,
        tie_word_embeddings=dims.tied,
    )
    with torch.device("meta"):
        made = LlamaForCausalLM(config)
    made.load_state_dict(hf_weights(model, dims), assign=True, strict=not dims.tied)
    made.tie_weights()
    set_factors(made, factors)
    return made.train()


def hf_weights(model: Any, dims: ModelDims, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A Megatron model's weights under the names of transformers' Llama, through the converters' table.

    Args:
        state: something else of each parameter, such as its gradient; None: the weights.
    """
    state = model.state_dict() if state is None else state
    saved = {checkpoint_name(model, name): value for name, value in state.items()}
    padded = dims.padded(len(saved["embedding.word_embeddings.weight"]))
    weights: dict[str, Tensor] = {}
    for mapping in ARCHITECTURES["llama"].mappings(tied=dims.tied, biased=False):
        for layer in range(dims.num_layers if mapping.in_layers else 1):
            parts = mapping.to_hf(saved[mapping.megatron.replace(LAYERS, f"{LAYERS}{layer}.")], padded)
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
        elif model.is_gradient_checkpointing:
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


def training_step(
    model: Any, lengths: list[int], vocab_size: int, after_backward: Callable[[], None] = lambda: None
) -> Callable[[], float]:
    """Forward and backward of a Megatron model on one pack of documents; returns the mean loss.

    Labels are the tokens themselves: as much work as next tokens, and the loss is a check value only.
    `after_backward` is called while the gradients are there.
    """
    packed = DocumentPack.of(tuple(lengths))
    tokens = tokens_of(lengths, vocab_size)[None]
    position_ids = torch.cat([torch.arange(n) for n in lengths])[None].to(tokens.device)

    def step() -> float:
        loss = model(tokens, position_ids, None, labels=tokens, packed_seq_params=packed).mean()
        loss.backward()
        after_backward()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def hf_training_step(model: Any, lengths: list[int], vocab_size: int) -> Callable[[], float]:
    """The same on a transformers model; equal documents are rows of a batch, so that nothing is masked."""
    rows = tokens_of(lengths, vocab_size).view(len(lengths), -1)

    def step() -> float:
        logits = model(rows, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), rows.flatten())
        loss.backward()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
