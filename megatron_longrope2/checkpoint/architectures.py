"""The architectures that can be converted, one table each."""

from collections.abc import Mapping as Dictionary
from dataclasses import dataclass, field
from typing import Any

from megatron_longrope2.checkpoint.mapping import LAYERS, QKV, Mapping, Vocabulary

_LAYER = "model.layers.{layer}."
_ATTENTION = LAYERS + "self_attention."
_MLP = LAYERS + "mlp."

EMBEDDING = Vocabulary("embedding.word_embeddings.weight", ("model.embed_tokens.weight",))
_FINAL_NORM = Mapping("decoder.final_layernorm.weight", ("model.norm.weight",), columns=())
_LM_HEAD = Vocabulary("output_layer.weight", ("lm_head.weight",))


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face architecture as a table.

    Attributes:
        layer: one layer's mappings, in the order in which tensors are read and written.
        biases: one layer's bias mappings, where config.json may ask for biases in every linear layer.
        arguments: Megatron arguments that hold for every model of the architecture.
    """

    layer: tuple[Mapping, ...]
    biases: tuple[Mapping, ...] = ()
    arguments: Dictionary[str, Any] = field(default_factory=dict)

    def mappings(self, *, tied: bool, biased: bool = False) -> list[Mapping]:
        """All mappings of a model: embedding, layer, final norm, and the output layer unless it is tied."""
        layer = [*self.layer, *(self.biases if biased else ())]
        return [EMBEDDING, *layer, _FINAL_NORM, *([] if tied else [_LM_HEAD])]


def _hf(module: str, kind: str, *parts: str) -> tuple[str, ...]:
    """Hugging Face names of one or more of a layer's projections: their weights or their biases."""
    return tuple(f"{_LAYER}{module}.{part}_proj.{kind}" for part in parts)


_INPUT_NORM = Mapping(_ATTENTION + "linear_qkv.layer_norm_weight", (_LAYER + "input_layernorm.weight",), ())
_MLP_NORM = Mapping(_MLP + "linear_fc1.layer_norm_weight", (_LAYER + "post_attention_layernorm.weight",), ())
_ATTENTION_OUTPUT = Mapping(
    _ATTENTION + "linear_proj.weight", _hf("self_attn", "weight", "o"), columns=("query_size",)
)
_MLP_OUTPUT = Mapping(_MLP + "linear_fc2.weight", _hf("mlp", "weight", "down"), columns=("ffn_hidden_size",))
_GATE_UP = ("ffn_hidden_size", "ffn_hidden_size")
_LLAMA = (
    _INPUT_NORM,
    QKV(_ATTENTION + "linear_qkv.weight", _hf("self_attn", "weight", "q", "k", "v")),
    _ATTENTION_OUTPUT,
    _MLP_NORM,
    Mapping(_MLP + "linear_fc1.weight", _hf("mlp", "weight", "gate", "up"), rows=_GATE_UP),
    _MLP_OUTPUT,
)
_QKV_BIAS = QKV(_ATTENTION + "linear_qkv.bias", _hf("self_attn", "bias", "q", "k", "v"), columns=())

ARCHITECTURES = {
    "llama": Architecture(
        _LLAMA,
        biases=(
            _QKV_BIAS,
            Mapping(_ATTENTION + "linear_proj.bias", _hf("self_attn", "bias", "o"), columns=()),
            Mapping(_MLP + "linear_fc1.bias", _hf("mlp", "bias", "gate", "up"), columns=(), rows=_GATE_UP),
            Mapping(_MLP + "linear_fc2.bias", _hf("mlp", "bias", "down"), columns=()),
        ),
    ),
    "mistral": Architecture(_LLAMA),
    "phi3": Architecture(
        (
            _INPUT_NORM,
            QKV(_ATTENTION + "linear_qkv.weight", _hf("self_attn", "weight", "qkv"), rows=("qkv_size",)),
            _ATTENTION_OUTPUT,
            _MLP_NORM,
            Mapping(
                _MLP + "linear_fc1.weight", (_LAYER + "mlp.gate_up_proj.weight",), rows=("gate_up_size",)
            ),
            _MLP_OUTPUT,
        )
    ),
    "qwen2": Architecture((*_LLAMA, _QKV_BIAS), arguments={"add_qkv_bias": True}),
    "qwen3": Architecture(
        (
            *_LLAMA,
            *(
                Mapping(
                    f"{_ATTENTION}{name}_layernorm.weight",
                    (f"{_LAYER}self_attn.{name}_norm.weight",),
                    columns=(),
                    rows=("kv_channels",),
                )
                for name in "qk"
            ),
        ),
        arguments={"qk_layernorm": True},
    ),
}
"""`model_type` of config.json to the table."""
