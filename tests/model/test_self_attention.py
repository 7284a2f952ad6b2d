"""Which mask the core attention is told to apply, with a KV cache."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.transformer.enums import AttnMaskType

from megatron_longrope2.model.self_attention import LongRoPE2SelfAttention

HEADS, DIM, LENGTH = 2, 4, 16


@pytest.mark.parametrize(
    ("start", "tokens", "mask"),
    [
        (0, 5, AttnMaskType.causal),
        (5, 1, AttnMaskType.no_mask),
        (5, 2, AttnMaskType.causal_bottom_right),
        (5, 11, AttnMaskType.causal_bottom_right),
    ],
)
def test_the_mask_of_a_chunk(start: int, tokens: int, mask: AttnMaskType) -> None:
    attention: Any = LongRoPE2SelfAttention.__new__(LongRoPE2SelfAttention)
    torch.nn.Module.__init__(attention)
    attention.attn_mask_type, attention.layer_number = AttnMaskType.causal, 1
    attention.config = SimpleNamespace(flash_decode=False)
    attention.eval()
    context = StaticInferenceContext(1, LENGTH)
    context.sequence_len_offset = start
    context.key_value_memory_dict[1] = (
        torch.zeros(LENGTH, 1, HEADS, DIM),
        torch.zeros(LENGTH, 1, HEADS, DIM),
    )
    states = torch.randn(tokens, 1, HEADS, DIM)
    query, key, value, rotary, found, _ = attention._adjust_key_value_for_inference(
        context, states, states, states, None
    )
    assert found == mask
    assert len(query) == tokens
    assert len(key) == len(value) == start + tokens
    assert rotary is None
