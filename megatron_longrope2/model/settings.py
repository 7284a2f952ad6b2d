"""The options of the rescaled RoPE, of every command that makes a Megatron model. Imports no Megatron."""

from dataclasses import dataclass

from megatron_longrope2.options import options


@options("Rescaled RoPE")
@dataclass(frozen=True)
class ModelSettings:
    """Rescaled RoPE.

    Attributes:
        rope_factors: The rescaling factors: a factor file (factors.json) or the name of a published set.
            Without this option they are those of the checkpoint; if it has none, nothing is rescaled.
        original_length: The number of tokens of the window that the model was pre-trained on. Documents of
            at most this length keep the original RoPE. Only needed where neither the factors nor the
            checkpoint say it.
    """

    rope_factors: str | None = None
    original_length: int | None = None
