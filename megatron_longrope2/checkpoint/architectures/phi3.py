"""Phi3: queries, keys and values in one tensor, gate and up projection in another."""

from megatron_longrope2.checkpoint.architectures.common import (
    ATTENTION,
    ATTENTION_OUTPUT,
    INPUT_NORM,
    LAYER,
    MLP,
    MLP_NORM,
    MLP_OUTPUT,
    Architecture,
)
from megatron_longrope2.checkpoint.mapping import Direct, FusedQKV

PHI3 = Architecture(
    model_type="phi3",
    layer=(
        INPUT_NORM,
        FusedQKV(ATTENTION + "linear_qkv.weight", LAYER + "self_attn.qkv_proj.weight"),
        ATTENTION_OUTPUT,
        MLP_NORM,
        Direct(MLP + "linear_fc1.weight", LAYER + "mlp.gate_up_proj.weight", ("gate_up_size", "hidden_size")),
        MLP_OUTPUT,
    ),
)
