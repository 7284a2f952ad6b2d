"""Qwen3 (dense): Llama's tensors, and an RMSNorm on each head's query and key."""

from megatron_longrope2.checkpoint.architectures.common import ATTENTION, LAYER, Architecture
from megatron_longrope2.checkpoint.architectures.llama import LLAMA
from megatron_longrope2.checkpoint.mapping import Direct

QWEN3 = Architecture(
    model_type="qwen3",
    layer=(
        *LLAMA.layer,
        Direct(ATTENTION + "q_layernorm.weight", LAYER + "self_attn.q_norm.weight", ("kv_channels",)),
        Direct(ATTENTION + "k_layernorm.weight", LAYER + "self_attn.k_norm.weight", ("kv_channels",)),
    ),
    arguments={"qk_layernorm": True},
)
