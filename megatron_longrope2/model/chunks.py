"""Self-attention that reads a prompt in chunks."""

from typing import Any

from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_longrope2.model.attention import LongRoPE2SelfAttention


class ChunkedSelfAttention(LongRoPE2SelfAttention):
    """With a KV cache, each query of a chunk sees the keys up to its own place.

    Upstream drops the mask once the static cache holds anything, because the one token that follows sees all
    keys. The torch core attention masks by the numbers of queries and keys; Transformer Engine's must be
    told.
    """

    def _adjust_key_value_for_inference(
        self, inference_context: Any, query: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Upstream's; query [tokens, batch, heads, dim]."""
        *adjusted, mask, table = super()._adjust_key_value_for_inference(
            inference_context, query, *args, **kwargs
        )
        if mask == AttnMaskType.no_mask and len(query) > 1:
            mask = AttnMaskType.causal_bottom_right
        return (*adjusted, mask, table)
