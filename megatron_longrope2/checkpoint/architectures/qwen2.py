"""Qwen2 and Qwen2.5 (dense): Llama's tensors, and a bias in the query, key and value projections."""

from megatron_longrope2.checkpoint.architectures.common import ATTENTION, LAYER, Architecture
from megatron_longrope2.checkpoint.architectures.llama import LLAMA
from megatron_longrope2.checkpoint.mapping import QKV

QWEN2 = Architecture(
    model_type="qwen2",
    layer=(
        *LLAMA.layer,
        QKV(
            ATTENTION + "linear_qkv.bias",
            LAYER + "self_attn.q_proj.bias",
            LAYER + "self_attn.k_proj.bias",
            LAYER + "self_attn.v_proj.bias",
            columns=(),
        ),
    ),
    arguments={"add_qkv_bias": True},
)
