"""Causal attention of the torch layer spec."""

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from megatron_longrope2.model.pack import DocumentPack

# Queries that begin in the middle of their document are attended in blocks of this size, so that a mask has
# at most QUERY_BLOCK x keys elements.
QUERY_BLOCK = 512
FLASH_DTYPES = (torch.float16, torch.bfloat16)
# Older versions of torch take grouped queries without being told.
VARLEN_ASKS_FOR_GROUPS = "enable_gqa" in signature(varlen_attn).parameters


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
        packed_seq_params: DocumentPack | None = None,
    ) -> Tensor:
        """Attend causally inside each document.

        Args:
            query: [tokens, heads, dim] when packed, else [tokens, batch, heads, dim]; key and value alike
                with their own number of heads, and, with a KV cache, more tokens: queries are the last ones.
            packed_seq_params: the documents, or None where each batch row is one document.

        Returns:
            [tokens, heads * dim] when packed, else [tokens, batch, heads * dim].
        """
        if attention_bias is not None:
            raise ValueError("attention bias is not supported by the torch layer spec")
        if packed_seq_params is None:
            output = self._attend_rows(query, key, value)
        else:
            output = self._attend_documents(query, key, value, packed_seq_params)
        return output.flatten(-2)

    def _attend_rows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[tokens, batch, heads, dim]: every batch row is one document."""
        if self.cp_group.size() == 1:
            if 1 < len(query) < len(key) and has_varlen_kernel(query):
                return self._varlen_rows(query, key, value)
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            return self._causal(q, k, v).permute(2, 0, 1, 3)
        pack = DocumentPack.of(
            (query.shape[0] * self.cp_group.size(),), self.cp_group.size(), self.cp_group.rank()
        )
        rows = zip(query.unbind(1), key.unbind(1), value.unbind(1), strict=True)
        return torch.stack([self._attend_documents(q, k, v, pack) for q, k, v in rows], dim=1)

    def _attend_documents(self, query: Tensor, key: Tensor, value: Tensor, pack: DocumentPack) -> Tensor:
        """[tokens of this rank, heads, dim] of a pack that the context-parallel ranks share."""
        if pack.key_indices is not None:
            key, value = (
                gather_from_sequence_parallel_region(
                    x, tensor_parallel_output_grad=True, group=self.cp_group
                )[pack.key_indices]
                for x in (key, value)
            )
        if has_varlen_kernel(query):
            starts = pack.query_boundaries, pack.key_boundaries
            return self._varlen(query, key, value, *starts, max(pack.queries), max(pack.keys))
        segments = zip(query.split(pack.queries), key.split(pack.keys), value.split(pack.keys), strict=True)
        rows = ([x.transpose(0, 1)[None] for x in segment] for segment in segments)
        return torch.cat([self._causal(q, k, v)[0].transpose(0, 1) for q, k, v in rows])

    def _varlen_rows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[tokens, batch, heads, dim]: queries that are the last of their row's tokens."""
        queries, keys, rows = len(query), len(key), query.shape[1]
        starts = torch.arange(rows + 1, dtype=torch.int32, device=query.device)
        q, k, v = (x.transpose(0, 1).flatten(0, 1) for x in (query, key, value))
        output = self._varlen(q, k, v, starts * queries, starts * keys, queries, keys)
        return output.unflatten(0, (rows, queries)).transpose(0, 1)

    def _varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_boundaries: Tensor,
        key_boundaries: Tensor,
        most_queries: int,
        most_keys: int,
    ) -> Tensor:
        """One call of flash attention for all segments; its causal mask is aligned to the last key."""
        return varlen_attn(
            query,
            key,
            value,
            query_boundaries,
            key_boundaries,
            most_queries,
            most_keys,
            scale=self.softmax_scale,
            window_size=(-1, 0),
            **({"enable_gqa": query.shape[-2] != key.shape[-2]} if VARLEN_ASKS_FOR_GROUPS else {}),
        )

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each query of [batch, heads, queries, dim] sees the keys up to its own place, the last one all."""
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
            first, visible = (keys - queries + n for n in (start, start + block.shape[2]))
            mask = places[:visible] <= places[first:visible, None]
            outputs.append(
                F.scaled_dot_product_attention(
                    block, key[:, :, :visible], value[:, :, :visible], attn_mask=mask, **options
                )
            )
        return torch.cat(outputs, dim=2)


def has_varlen_kernel(query: Tensor) -> bool:
    """Whether torch's variable-length flash attention takes these queries."""
    return query.device.type != "cpu" and query.dtype in FLASH_DTYPES


def _repeats_heads(query: Tensor, *, masked: bool) -> bool:
    """Whether torch would form all scores for this call if it were given grouped queries.

    Of the CUDA kernels that save memory only flash attention and cuDNN take grouped queries: in half
    precision and without a mask.
    """
    return query.device.type != "cpu" and (masked or query.dtype not in FLASH_DTYPES)
