"""The arguments from which Megatron works out its own theoretical figures."""

from argparse import Namespace

from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.planning.layout import Layout


def upstream_args(model: ModelDims, layout: Layout, length: int) -> Namespace:
    """As `validate_args` would leave them."""
    return Namespace(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        group_query_attention=True,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        padded_vocab_size=model.padded_vocab_size,
        untie_embeddings_and_output_weights=not model.tied,
        swiglu=True,
        normalization="RMSNorm",
        add_bias_linear=False,
        seq_length=length,
        micro_batch_size=1,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=None,
        data_parallel_size=layout.data,
        world_size=layout.tensor * layout.context * layout.pipeline * layout.data,
        use_distributed_optimizer=True,
        # What a dense model leaves at its default.
        num_experts=None,
        expert_tensor_parallel_size=1,
        expert_model_parallel_size=1,
        moe_shared_expert_intermediate_size=None,
        moe_latent_size=None,
        moe_router_topk=2,
        moe_ffn_hidden_size=None,
        mtp_num_layers=None,
        multi_latent_attention=False,
        attention_output_gate=False,
        experimental_attention_variant=None,
        hybrid_layer_pattern=None,
        is_hybrid_model=False,
    )
