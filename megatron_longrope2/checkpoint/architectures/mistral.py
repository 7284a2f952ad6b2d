"""Mistral (dense): Llama's tensors under Mistral's configuration."""

from megatron_longrope2.checkpoint.architectures.common import Architecture
from megatron_longrope2.checkpoint.architectures.llama import LLAMA

MISTRAL = Architecture(model_type="mistral", layer=LLAMA.layer)
