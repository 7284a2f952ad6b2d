"""The architectures that can be converted, one small table each."""

from megatron_longrope2.checkpoint.architectures.common import Architecture
from megatron_longrope2.checkpoint.architectures.llama import LLAMA
from megatron_longrope2.checkpoint.architectures.mistral import MISTRAL
from megatron_longrope2.checkpoint.architectures.phi3 import PHI3
from megatron_longrope2.checkpoint.architectures.qwen2 import QWEN2
from megatron_longrope2.checkpoint.architectures.qwen3 import QWEN3

ARCHITECTURES = {table.model_type: table for table in (LLAMA, MISTRAL, PHI3, QWEN2, QWEN3)}

__all__ = ["ARCHITECTURES", "Architecture"]
