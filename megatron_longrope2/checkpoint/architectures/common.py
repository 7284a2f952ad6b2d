"""What an architecture's table is, and the rows that all tables share."""

from collections.abc import Mapping as Dictionary
from dataclasses import dataclass, field
from typing import Any

from megatron_longrope2.checkpoint.mapping import Direct, GatedMLP, Mapping, Vocabulary

LAYER = "model.layers.{layer}."
ATTENTION = "decoder.layers.self_attention."
MLP = "decoder.layers.mlp."
OUTPUT = "output_layer.weight"

EMBEDDING = Vocabulary("embedding.word_embeddings.weight", "model.embed_tokens.weight")
FINAL_NORM = Direct("decoder.final_layernorm.weight", "model.norm.weight", ("hidden_size",))
LM_HEAD = Vocabulary(OUTPUT, "lm_head.weight")

INPUT_NORM = Direct(
    ATTENTION + "linear_qkv.layer_norm_weight", LAYER + "input_layernorm.weight", ("hidden_size",)
)
ATTENTION_OUTPUT = Direct(
    ATTENTION + "linear_proj.weight", LAYER + "self_attn.o_proj.weight", ("hidden_size", "query_size")
)
MLP_NORM = Direct(
    MLP + "linear_fc1.layer_norm_weight", LAYER + "post_attention_layernorm.weight", ("hidden_size",)
)
GATED_MLP = GatedMLP(MLP + "linear_fc1.weight", LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight")
MLP_OUTPUT = Direct(
    MLP + "linear_fc2.weight", LAYER + "mlp.down_proj.weight", ("hidden_size", "ffn_hidden_size")
)


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face architecture as a table."""

    model_type: str
    """`model_type` of config.json."""
    layer: tuple[Mapping, ...]
    """One layer's mappings, in the order in which tensors are read and written."""
    biases: tuple[Mapping, ...] = ()
    """One layer's bias mappings, where config.json may ask for biases in every linear layer."""
    arguments: Dictionary[str, Any] = field(default_factory=dict)
    """Megatron arguments that hold for every model of the architecture."""

    def mappings(self, *, tied: bool, biased: bool = False) -> list[Mapping]:
        """All mappings of a model: embedding, layer, final norm, and the output layer unless it is tied."""
        layer = [*self.layer, *(self.biases if biased else ())]
        return [EMBEDDING, *layer, FINAL_NORM, *([] if tied else [LM_HEAD])]
