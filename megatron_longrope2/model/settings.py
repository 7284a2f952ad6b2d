"""The options that commands which make a Megatron model share. Imports no Megatron."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

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


@options("Parallel layout (under torchrun)")
@dataclass(frozen=True, kw_only=True)
class LayoutSettings:
    """How a Megatron model is run, and spread over the ranks; spare ranks work on other samples.

    Attributes:
        tensor_model_parallel_size: Number of ranks that share every layer.
        pipeline_model_parallel_size: Number of ranks that share the layers out.
        context_parallel_size: Number of ranks that share the tokens of a text.
        bf16: Hold weights and activations in bfloat16 instead of float32.
        megatron: Further arguments of Megatron, as training takes them: all that follows on the command line,
            such as --megatron --sequence-parallel --attention-backend flash.
    """

    tensor_model_parallel_size: PositiveInt = 1
    pipeline_model_parallel_size: PositiveInt = 1
    context_parallel_size: PositiveInt = 1
    bf16: bool = False
    megatron: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, consume_multiple=True)] = ()
