"""Self-attention that rotates packs, applies the window's attention factor, and reads a prompt in chunks."""

from typing import Any

import torch
from megatron.core.models.common.embeddings.rope_utils import _rotate_half, apply_rotary_pos_emb
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_longrope2.model.rotary import ActiveFactors


class LongRoPE2SelfAttention(SelfAttention):
    """Upstream's self-attention that rotates a pack in one call and applies the window's attention factor.

    The angles have a row for every token, so a pack is rotated as one sequence is: by Transformer Engine's
    fused kernel or elementwise, whatever the number of documents. Only where a cache holds earlier keys,
    upstream picks the rows.

    An attention factor f multiplies cosine and sine of queries and keys; products of the two have f ** 2, and
    so have those of rotated queries that are multiplied by f ** 2. No kernel needs to know of it.

    Attributes:
        active: the factors that the model applies; set by the model builder.
    """

    active: ActiveFactors

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Upstream's `SelfAttention.forward`; hidden_states [tokens, batch, hidden].

        Everything is worked out from this call's own arguments, so that recomputation in the backward pass
        finds the same whatever micro-batch came in between.
        """
        self._angles, self._pack = kwargs["rotary_pos_emb"], kwargs.get("packed_seq_params")
        self._rotates = self._angles is not None and kwargs.get("inference_context") is None
        if self._rotates:
            kwargs["rotary_pos_emb"] = None
        return super().forward(hidden_states, *args, **kwargs)

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, [tokens, batch, heads, dim]; the queries scaled, and rotated as the keys are."""
        query, key, *others = super().get_query_key_value_tensors(*args, **kwargs)
        if self._angles is not None:
            query = self._scaled(query)
        if self._rotates:
            query, key = self._rotated(query, key)
        return query, key, *others

    def _rotated(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Upstream's rotation of both; without the fused kernel they share one cosine and one sine."""
        angles, config = self._angles, self.config
        if config.apply_rope_fusion:
            group = self.pg_collection.cp
            query, key = (apply_rotary_pos_emb(x, angles, config, cp_group=group) for x in (query, key))
            return query, key
        cos, sin = angles.cos().to(query.dtype), angles.sin().to(query.dtype)

        def rotate(states: Tensor) -> Tensor:
            turned = states[..., : angles.shape[-1]]
            turned = turned * cos + _rotate_half(turned, config.rotary_interleaved) * sin
            return _with_tail(turned, states)

        return rotate(query), rotate(key)

    def _scaled(self, query: Tensor) -> Tensor:
        """The queries with their rotated dimensions multiplied by the squared attention factor."""
        # Batch rows are of one length; the angles are this rank's share of it.
        extent = self._pack or len(self._angles) * self.config.context_parallel_size
        scale = self.active.query_scale(extent)
        if isinstance(scale, float) and scale == 1:
            return query
        rotated = query[..., : self._angles.shape[-1]]
        return _with_tail((rotated * scale).to(query.dtype), query)

    def _adjust_key_value_for_inference(
        self, inference_context: Any, query: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Upstream's; query [tokens, batch, heads, dim].

        Upstream drops the mask once the static cache holds anything, because the one token that follows sees
        all keys. In a chunk of a prompt each query sees the keys up to its own place. The torch core
        attention masks by the numbers of queries and keys; Transformer Engine's must be told.
        """
        *adjusted, mask, table = super()._adjust_key_value_for_inference(
            inference_context, query, *args, **kwargs
        )
        if mask == AttnMaskType.no_mask and len(query) > 1:
            mask = AttnMaskType.causal_bottom_right
        return (*adjusted, mask, table)


def _with_tail(changed: Tensor, states: Tensor) -> Tensor:
    """The changed first dimensions of the heads, and the others as they are."""
    dims = changed.shape[-1]
    return changed if dims == states.shape[-1] else torch.cat([changed, states[..., dims:]], dim=-1)
