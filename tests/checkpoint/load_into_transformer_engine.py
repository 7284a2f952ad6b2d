"""Run in a process of its own: a GPTModel on the Transformer Engine spec, and a checkpoint loaded into it.

usage: load_into_transformer_engine.py MEGATRON_DIR. Prints ANSWER and a JSON object: what the model asked the
checkpoint for (`tensors`: name to shape, `objects`: names) and how many parameters came out other than saved.
"""

import json
import sys
from argparse import Namespace
from typing import Any
from unittest.mock import patch

import torch

from megatron_longrope2 import device

device.install()

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_longrope2.checkpoint.megatron_files import MegatronTensors


def build_model(args: Namespace) -> GPTModel:
    """The model that the checkpoint's arguments describe; it cannot run without a GPU."""
    same = (
        *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
        *("kv_channels", "normalization", "layernorm_epsilon", "add_bias_linear", "add_qkv_bias"),
        *("qk_layernorm", "attention_dropout", "hidden_dropout", "params_dtype"),
    )
    config = TransformerConfig(
        **{name: getattr(args, name) for name in same},
        gated_linear_unit=args.swiglu,
        activation_func=torch.nn.functional.silu,
        use_cpu_initialization=True,
    )
    return GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec(qk_layernorm=args.qk_layernorm),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type="rope",
    )


def asked_for(sharded: dict[str, Any]) -> dict[str, Any]:
    """Names and whole shapes of what a sharded state dict would load."""
    tensors, objects = {}, []
    for value in nested_values(sharded):
        parts = value.build() if isinstance(value, ShardedTensorFactory) else [value]
        for part in parts:
            if isinstance(part, ShardedTensor):
                tensors[part.key] = list(part.global_shape)
            elif isinstance(part, ShardedObject):
                objects.append(part.unique_key)
    return {"tensors": tensors, "objects": sorted(objects)}


if __name__ == "__main__":
    folder = sys.argv[1]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    saved = MegatronTensors(folder)
    # All that its modules ask before they make their parameters.
    with patch("torch.cuda.is_available", return_value=True):
        model = build_model(saved.args)
    sharded = model.sharded_state_dict()
    answer = asked_for(sharded)
    loaded = dist_checkpointing.load({"model": sharded}, str(saved.folder))
    model.load_state_dict(loaded["model"], strict=True)
    wrong = []
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or name.endswith("_extra_state"):
            continue
        layer = int(name.split(".")[2]) if name.startswith("decoder.layers.") else None
        stacked = name.replace(f"layers.{layer}.", "layers.")
        if not torch.equal(value, saved.read(stacked, layer, 0, value.shape[0])):
            wrong.append(name)
    print("ANSWER" + json.dumps(answer | {"wrong": wrong}))
