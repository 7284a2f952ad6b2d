"""The sizes of a model, from a preset, a Hugging Face folder or a Megatron checkpoint."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_longrope2.errors import InputError

VOCABULARY_UNIT = 128
"""Megatron pads the vocabulary to a multiple of this times the tensor parallel size."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder with RMSNorm, SwiGLU and grouped queries; names are Megatron's.

    Attributes:
        original_length: pre-trained window, tokens.
        tied: the output layer is the embedding.
    """

    name: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    original_length: int
    tied: bool = False

    @property
    def query_size(self) -> int:
        """Columns of the queries."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_value_size(self) -> int:
        """Columns of the keys (or of the values)."""
        return self.num_query_groups * self.kv_channels

    @property
    def attention_parameters(self) -> int:
        """Of one layer: queries, keys, values and the output projection."""
        return 2 * self.hidden_size * (self.query_size + self.key_value_size)

    @property
    def mlp_parameters(self) -> int:
        """Of one layer: gate, up and down projections."""
        return 3 * self.hidden_size * self.ffn_hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, or of the output layer."""
        return self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        layer = self.attention_parameters + self.mlp_parameters + 2 * self.hidden_size
        embeddings = (1 if self.tied else 2) * self.embedding_parameters
        return self.num_layers * layer + self.hidden_size + embeddings

    def padded(self, tensor_parallel_size: int) -> "ModelShape":
        """With the vocabulary that Megatron trains at this tensor parallel size."""
        unit = VOCABULARY_UNIT * tensor_parallel_size
        return replace(self, vocab_size=-(-self.vocab_size // unit) * unit)


PRESETS = {
    shape.name: shape
    for shape in (
        ModelShape("llama3-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192),
        ModelShape("llama3-70b", 80, 8192, 28672, 64, 8, 128, 128256, 8192),
        ModelShape("phi3-mini", 32, 3072, 8192, 32, 32, 96, 32064, 2048),
    )
}


def load_shape(model: str) -> ModelShape:
    """The sizes of a preset, or of the model in a folder.

    Args:
        model: a name of `PRESETS`, a Hugging Face folder, or a Megatron checkpoint.

    Raises:
        InputError: neither of them, or a model that cannot be converted.
    """
    if model in PRESETS:
        return PRESETS[model]
    if (Path(model) / "config.json").is_file():
        return _from_hf(model)
    if not Path(model).is_dir():
        raise InputError(
            f"{model}: neither a folder nor a known model; known are {', '.join(PRESETS)}, else name a "
            "Hugging Face folder or a Megatron checkpoint"
        )
    return _from_megatron(model)


def _from_hf(folder: str) -> ModelShape:
    from megatron_longrope2.checkpoint.hf_config import HFConfig

    config = HFConfig.read(folder)
    dims = config.dims(0)
    factors = config.factors()
    return ModelShape(
        name=Path(folder).name,
        num_layers=dims.num_layers,
        hidden_size=dims.hidden_size,
        ffn_hidden_size=dims.ffn_hidden_size,
        num_attention_heads=dims.num_attention_heads,
        num_query_groups=dims.num_query_groups,
        kv_channels=dims.kv_channels,
        vocab_size=dims.vocab_size,
        original_length=factors.original_length if factors else config.full["max_position_embeddings"],
        tied=config.tied,
    )


def _from_megatron(folder: str) -> ModelShape:
    from megatron_longrope2.checkpoint.megatron_files import MegatronTensors

    args: Namespace = MegatronTensors(folder).args
    grouped = getattr(args, "group_query_attention", False)
    return ModelShape(
        name=Path(folder).name,
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups if grouped else args.num_attention_heads,
        kv_channels=args.kv_channels,
        vocab_size=getattr(args, "vocab_size", None) or args.padded_vocab_size,
        original_length=getattr(args, "original_length", None) or args.max_position_embeddings,
        tied=not args.untie_embeddings_and_output_weights,
    )
