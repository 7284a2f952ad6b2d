"""The sizes of a model, and the number of its parameters. Needs neither torch nor Megatron."""

from argparse import Namespace
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelDims:
    """Sizes of a dense decoder with RMSNorm, gated MLP and grouped queries; the names are Megatron's.

    Attributes:
        name: what messages call the model.
        kv_channels: size of an attention head.
        vocab_size: tokens of the vocabulary.
        original_length: pre-trained window, tokens.
        tied: whether the output layer is the embedding.
        vocab_padding: rows that Megatron adds to the vocabulary, so that tensor-parallel ranks get equal
            shares.
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
    vocab_padding: int = 0

    @classmethod
    def from_args(cls, args: Namespace, name: str = "model") -> "ModelDims":
        """The sizes in Megatron's arguments, parsed or read from a checkpoint."""
        vocab_size = getattr(args, "vocab_size", None) or args.padded_vocab_size
        grouped = getattr(args, "group_query_attention", False)
        return cls(
            name=name,
            num_layers=args.num_layers,
            hidden_size=args.hidden_size,
            ffn_hidden_size=args.ffn_hidden_size,
            num_attention_heads=args.num_attention_heads,
            # Without grouped queries, Megatron's default for the number of groups means nothing.
            num_query_groups=args.num_query_groups if grouped else args.num_attention_heads,
            kv_channels=args.kv_channels,
            vocab_size=vocab_size,
            original_length=getattr(args, "original_length", None) or args.max_position_embeddings,
            tied=not args.untie_embeddings_and_output_weights,
            vocab_padding=args.padded_vocab_size - vocab_size,
        )

    def padded(self, multiple: int) -> "ModelDims":
        """The model whose vocabulary is padded to a multiple of this many rows."""
        return replace(self, vocab_padding=-self.vocab_size % multiple)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.vocab_size + self.vocab_padding

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_value_size(self) -> int:
        """Rows of the key (or the value) projection."""
        return self.num_query_groups * self.kv_channels

    @property
    def qkv_size(self) -> int:
        """Rows of the query, key and value projections together."""
        return self.query_size + 2 * self.key_value_size

    @property
    def gate_up_size(self) -> int:
        """Rows of the gate and up projections together."""
        return 2 * self.ffn_hidden_size

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's query, key, value and output projections."""
        return self.hidden_size * (self.qkv_size + self.query_size)

    @property
    def mlp_parameters(self) -> int:
        """Weights of one layer's gate, up and down projections."""
        return self.hidden_size * (self.gate_up_size + self.ffn_hidden_size)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding (or of the output layer), with its padding."""
        return self.hidden_size * self.padded_vocab_size

    @property
    def parameters(self) -> int:
        """Weights of the whole model, without biases and the norms of queries and keys."""
        layer = self.attention_parameters + self.mlp_parameters + 2 * self.hidden_size
        embeddings = (1 if self.tied else 2) * self.embedding_parameters
        return self.num_layers * layer + self.hidden_size + embeddings
