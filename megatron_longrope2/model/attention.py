"""Causal attention of the torch layer spec, and self-attention that applies the window's attention factor."""

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from megatron_longrope2.model.context_parallel import gathered_order, local_token_indices
from megatron_longrope2.model.rotary import LongRoPE2RotaryEmbedding

# Queries a block where queries start in the middle of their document: bounds the mask to BLOCK x keys.
QUERY_BLOCK = 512
FLASH_DTYPES = (torch.float16, torch.bfloat16)
# Older torch takes grouped queries without being told.
VARLEN_ASKS_FOR_GROUPS = "enable_gqa" in signature(varlen_attn).parameters


class LongRoPE2SelfAttention(SelfAttention):
    """Upstream's self-attention; cosine and sine are multiplied by the window's attention factor.

    The factor is worked out from this call's own arguments, so that recomputation in the backward pass finds
    the same one whatever micro-batch came in between. `rotary` is set by the model builder, as a one-tuple:
    the embedding is a sub-module of the model, not of every layer.
    """

    rotary: tuple[LongRoPE2RotaryEmbedding] | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Upstream's `SelfAttention.forward`; hidden_states [tokens, batch, hidden]."""
        if self.rotary is not None:
            (rotary,) = self.rotary
            seq_len = rotary.get_rotary_seq_len(
                kwargs.get("inference_context"),
                None,
                hidden_states,
                self.config,
                kwargs.get("packed_seq_params"),
            )
            factor = rotary.attention_factor(seq_len)
            if isinstance(factor, Tensor) and factor.ndim and self.config.context_parallel_size > 1:
                factor = self._local(factor, kwargs["packed_seq_params"])
            self._yarn_concentration_factor = factor
        return super().forward(hidden_states, *args, **kwargs)

    def _local(self, per_token: Tensor, packed: PackedSeqParams) -> Tensor:
        group = self.pg_collection.cp
        return per_token[local_token_indices(packed.cu_seqlens_q, group.size(), group.rank())]


class TorchDotProductAttention(MegatronModule):
    """Causal attention over torch's own kernels: packed documents, GQA, context parallelism.

    Keys and values are gathered over the context-parallel group (as in Llama 3's training, arXiv 2407.21783
    section 3.3.2); no rank ever holds a tokens x tokens mask. On a GPU, packs in half precision go through
    torch's variable-length flash attention in one call; all others through `scaled_dot_product_attention`,
    document by document. The signature is upstream's `DotProductAttention`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,  # noqa: ARG002 - upstream's signature; the torch spec always gathers
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        if attention_type != "self":
            raise ValueError(f"the torch layer spec has self-attention only, not {attention_type!r}")
        self.layer_number = layer_number
        self.attn_mask_type = attn_mask_type
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        if pg_collection is None:
            pg_collection = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp"])
        self.cp_group = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002 - causal always; the documents come as cu_seqlens
        attn_mask_type: AttnMaskType | None = None,  # noqa: ARG002
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend causally inside each document.

        Args:
            query: [tokens, heads, dim] when packed, else [tokens, batch, heads, dim]; key and value alike
                with their own number of heads, and, with a KV cache, more tokens: queries are the last ones.
            packed_seq_params: document boundaries, or None for one document a batch row.

        Returns:
            [tokens, heads * dim] when packed, else [tokens, batch, heads * dim].
        """
        if attention_bias is not None:
            raise ValueError("attention bias is not supported by the torch layer spec")
        if packed_seq_params is None:
            output = self._attend_rows(query, key, value)
        else:
            boundaries = packed_seq_params.cu_seqlens_q_padded
            if boundaries is None:
                boundaries = packed_seq_params.cu_seqlens_q
            output = self._attend_documents(query, key, value, boundaries)
        return output.flatten(-2)

    def _attend_rows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[tokens, batch, heads, dim]: every batch row is one document."""
        if self.cp_group.size() == 1:
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            return self._causal(q, k, v).permute(2, 0, 1, 3)
        tokens = query.shape[0] * self.cp_group.size()
        boundaries = torch.tensor([0, tokens], dtype=torch.int32, device=query.device)
        rows = [
            self._attend_documents(query[:, row], key[:, row], value[:, row], boundaries)
            for row in range(query.shape[1])
        ]
        return torch.stack(rows, dim=1)

    def _attend_documents(self, query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor) -> Tensor:
        """[tokens of this rank, heads, dim] with the boundaries of the whole pack."""
        cp_size, cp_rank = self.cp_group.size(), self.cp_group.rank()
        if cp_size == 1:
            return self._attend_segments(query, key, value, boundaries, boundaries[:-1], boundaries[1:])
        order = gathered_order(boundaries, cp_size)
        key, value = (
            gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=True, group=self.cp_group)[
                order
            ]
            for x in (key, value)
        )
        # Of each document this rank holds chunk `cp_rank`, then chunk `2 * cp_size - 1 - cp_rank`.
        starts, chunks = boundaries[:-1], boundaries.diff() // (2 * cp_size)
        local = F.pad(chunks.repeat_interleave(2).cumsum(0), (1, 0)).to(torch.int32)
        ends = torch.stack(
            [starts + (cp_rank + 1) * chunks, starts + (2 * cp_size - cp_rank) * chunks], dim=1
        )
        return self._attend_segments(
            query, key, value, local, starts.repeat_interleave(2), ends.flatten().to(starts.dtype)
        )

    def _attend_segments(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        boundaries: Tensor,
        key_starts: Tensor,
        key_ends: Tensor,
    ) -> Tensor:
        """Segment s: queries [boundaries[s], boundaries[s+1]) end keys [key_starts[s], key_ends[s])."""
        if query.is_cuda and query.dtype in FLASH_DTYPES:
            return self._varlen(query, key, value, boundaries, key_starts, key_ends)
        outputs = []
        bounds = boundaries.tolist()
        for start, end, key_start, key_end in zip(
            bounds[:-1], bounds[1:], key_starts.tolist(), key_ends.tolist(), strict=True
        ):
            if start == end:
                continue
            q = query[start:end].transpose(0, 1).unsqueeze(0)
            k, v = (x[key_start:key_end].transpose(0, 1).unsqueeze(0) for x in (key, value))
            outputs.append(self._causal(q, k, v).squeeze(0).transpose(0, 1))
        return torch.cat(outputs)

    def _varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        boundaries: Tensor,
        key_starts: Tensor,
        key_ends: Tensor,
    ) -> Tensor:
        """One call of flash attention for all segments; its causal mask is aligned to the last key."""
        lengths = key_ends - key_starts
        if self.cp_group.size() > 1:
            # The two chunks of a document share their first keys: lay each segment's keys end to end.
            first = F.pad(lengths.cumsum(0), (1, 0))[:-1]
            index = torch.arange(int(lengths.sum()), device=key.device)
            index += (key_starts - first).repeat_interleave(lengths)
            key, value = key[index], value[index]
        key_boundaries = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return varlen_attn(
            query,
            key,
            value,
            boundaries,
            key_boundaries,
            int(boundaries.diff().max()),
            int(lengths.max()),
            scale=self.softmax_scale,
            window_size=(-1, 0),
            **({"enable_gqa": query.shape[-2] != key.shape[-2]} if VARLEN_ASKS_FOR_GROUPS else {}),
        )

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, heads, queries, dim] sees keys up to its own place; the last query is the last key."""
        queries, keys = query.shape[2], key.shape[2]
        if _repeats_heads(query, masked=1 < queries < keys):
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        options: dict[str, Any] = {
            "scale": self.softmax_scale,
            "dropout_p": self.dropout if self.training else 0.0,
            "enable_gqa": query.shape[1] != key.shape[1],
        }
        if queries == keys:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, **options)
        if queries == 1:
            return F.scaled_dot_product_attention(query, key, value, **options)
        outputs = []
        places = torch.arange(keys, device=query.device)
        for start in range(0, queries, QUERY_BLOCK):
            block = query[:, :, start : start + QUERY_BLOCK]
            last = places[keys - queries + start :][: block.shape[2]]
            visible = int(last[-1]) + 1
            mask = places[:visible] <= last[:, None]
            outputs.append(
                F.scaled_dot_product_attention(
                    block, key[:, :, :visible], value[:, :, :visible], attn_mask=mask, **options
                )
            )
        return torch.cat(outputs, dim=2)


def _repeats_heads(query: Tensor, *, masked: bool) -> bool:
    """Whether torch's kernel for this call knows no grouped queries, and would build all scores instead.

    Of the CUDA kernels that save memory only flash attention and cuDNN know them: in half precision and
    without a mask.
    """
    return query.is_cuda and (masked or query.dtype not in FLASH_DTYPES)
