"""From the data loader's items to what a pipeline stage's forward pass takes.

`pretrain_gpt.py` of Megatron-LM does this outside the wheel; the broadcast and the flattening are upstream's.
Only the context-parallel slice is ours: per document, and without Transformer Engine's CUDA kernel.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import flatten_batch_for_packed_sequences, get_batch_on_this_tp_rank
from torch import Tensor

from megatron_longrope2.model.context_parallel import local_token_indices

KEYS = ("tokens", "labels", "loss_mask", "position_ids", "cu_seqlens", "cu_seqlens_padded", "max_seqlen")
SEQUENCE_KEYS = ("tokens", "labels", "loss_mask", "position_ids")


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank: `n` tokens of one pack. A stage holds only what it needs (else None).

    Attributes:
        tokens, labels, position_ids: int64 [1, n].
        loss_mask: float32 [1, n].
        packed: boundaries of the whole pack's documents.
        local_indices: positions in the pack of this rank's tokens, or None without context parallelism.
    """

    tokens: Tensor | None
    labels: Tensor | None
    loss_mask: Tensor | None
    position_ids: Tensor | None
    packed: PackedSeqParams
    local_indices: Tensor | None

    def places(self) -> Tensor:
        """Position in the pack of each of this rank's tokens, int64 [n]."""
        if self.local_indices is not None:
            return self.local_indices
        assert self.loss_mask is not None
        return torch.arange(self.loss_mask.numel(), device=self.loss_mask.device)

    def documents(self) -> Tensor:
        """Number within the pack of the document of each of this rank's tokens, int64 [n]."""
        return torch.searchsorted(self.packed.cu_seqlens_q[1:], self.places(), right=True)


def next_batch(iterator: Iterator[dict[str, Tensor]] | None, args: Namespace) -> Batch:
    """Draw a micro-batch, share it in the tensor-parallel group, keep this context-parallel rank's tokens."""
    tp_rank = mpu.get_tensor_model_parallel_rank()
    items: dict[str, Any] = {}
    if tp_rank == 0:
        assert iterator is not None
        drawn = next(iterator)
        items = {
            key: drawn[key].cuda(non_blocking=True) if drawn.get(key) is not None else None for key in KEYS
        }
    items = get_batch_on_this_tp_rank(
        items,
        has_cu_seqlens=True,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=False,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=tp_rank,
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(),
    )
    items = flatten_batch_for_packed_sequences(items)
    packed = pack_params(items["cu_seqlens"].squeeze(0), int(items["max_seqlen"].item()))
    local = None
    if args.context_parallel_size > 1:
        local = local_token_indices(
            packed.cu_seqlens_q, args.context_parallel_size, mpu.get_context_parallel_rank()
        )
        for key in SEQUENCE_KEYS:
            if items[key] is not None:
                items[key] = items[key].index_select(1, local)
    return Batch(packed=packed, local_indices=local, **{key: items[key] for key in SEQUENCE_KEYS})


def pack_params(cu_seqlens: Tensor, max_seqlen: int) -> PackedSeqParams:
    """Upstream's description of a pack from its document boundaries, int32 [documents + 1]."""
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
    )
