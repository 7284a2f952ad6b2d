"""Layer specs: upstream's with our self-attention, and in the torch spec our core attention and RMSNorm."""

from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.training.models.gpt import GPTModelConfig, default_layer_spec

from megatron_longrope2.model.attention import TorchDotProductAttention
from megatron_longrope2.model.norm import RMSNorm
from megatron_longrope2.model.self_attention import LongRoPE2SelfAttention


def longrope2_layer_spec(
    config: GPTModelConfig, vp_stage: int | None = None
) -> ModuleSpec | TransformerBlockSubmodules:
    """The layer spec for `--transformer-impl`: `transformer_engine`, or `local` for plain torch.

    Args:
        config: a dense model with RMSNorm.
        vp_stage: virtual pipeline stage.

    Returns:
        Upstream's spec (`megatron.training.models.gpt.default_layer_spec`) with our modules in it.
    """
    spec = default_layer_spec(config, vp_stage)
    layer = spec.submodules
    layer.self_attention.module = LongRoPE2SelfAttention
    if config.transformer.transformer_impl != "local":
        return spec
    attention = layer.self_attention.submodules
    attention.core_attention = TorchDotProductAttention
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    for name in ("q_layernorm", "k_layernorm"):
        if getattr(attention, name) is not IdentityOp:
            setattr(attention, name, RMSNorm)
    # Naming the block's last norm too: upstream would take Transformer Engine's wherever that is installed.
    layers = get_num_layers_to_build(config.transformer, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm)
