"""Llama 2, 3, 3.1, 3.2 and everything of their shape."""

from megatron_longrope2.checkpoint.architectures.common import (
    ATTENTION,
    ATTENTION_OUTPUT,
    GATED_MLP,
    INPUT_NORM,
    LAYER,
    MLP,
    MLP_NORM,
    MLP_OUTPUT,
    Architecture,
)
from megatron_longrope2.checkpoint.mapping import QKV, Direct, GatedMLP

LLAMA = Architecture(
    model_type="llama",
    layer=(
        INPUT_NORM,
        QKV(
            ATTENTION + "linear_qkv.weight",
            LAYER + "self_attn.q_proj.weight",
            LAYER + "self_attn.k_proj.weight",
            LAYER + "self_attn.v_proj.weight",
        ),
        ATTENTION_OUTPUT,
        MLP_NORM,
        GATED_MLP,
        MLP_OUTPUT,
    ),
    biases=(
        QKV(
            ATTENTION + "linear_qkv.bias",
            LAYER + "self_attn.q_proj.bias",
            LAYER + "self_attn.k_proj.bias",
            LAYER + "self_attn.v_proj.bias",
            columns=(),
        ),
        Direct(ATTENTION + "linear_proj.bias", LAYER + "self_attn.o_proj.bias", ("hidden_size",)),
        GatedMLP(
            MLP + "linear_fc1.bias", LAYER + "mlp.gate_proj.bias", LAYER + "mlp.up_proj.bias", columns=()
        ),
        Direct(MLP + "linear_fc2.bias", LAYER + "mlp.down_proj.bias", ("hidden_size",)),
    ),
)
