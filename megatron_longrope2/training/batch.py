"""From the data loader's items to what a pipeline stage's forward pass takes.

In Megatron-LM `pretrain_gpt.py` does this, which is not part of the wheel. The broadcast and the flattening
are upstream's; only the context-parallel slice is ours: per document, and without Transformer Engine's CUDA
kernel.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.utils import flatten_batch_for_packed_sequences, get_batch_on_this_tp_rank
from torch import Tensor

from megatron_longrope2.model.pack import DocumentPack

KEYS = ("tokens", "labels", "loss_mask", "position_ids", "cu_seqlens", "cu_seqlens_padded", "max_seqlen")
SEQUENCE_KEYS = ("tokens", "labels", "loss_mask", "position_ids")


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank: `n` tokens of one pack. A stage holds only what it needs (else None).

    Attributes:
        tokens, labels, position_ids: int64 [1, n].
        loss_mask: float32 [1, n].
        packed: the whole pack's documents.
    """

    tokens: Tensor | None
    labels: Tensor | None
    loss_mask: Tensor | None
    position_ids: Tensor | None
    packed: DocumentPack

    def places(self) -> Tensor:
        """Position in the pack of each of this rank's tokens, int64 [n]."""
        if self.packed.local_indices is not None:
            return self.packed.local_indices
        return torch.arange(sum(self.packed.lengths), device=self.packed.cu_seqlens_q.device)

    def documents(self) -> Tensor:
        """Number within the pack of the document of each of this rank's tokens, int64 [n]."""
        return torch.searchsorted(self.packed.cu_seqlens_q[1:], self.places(), right=True)


def next_batch(iterator: Iterator[dict[str, Tensor]] | None, args: Namespace) -> Batch:
    """Draw a micro-batch, share it in the tensor-parallel group, keep this context-parallel rank's tokens."""
    tp_rank = mpu.get_tensor_model_parallel_rank()
    items: dict[str, Any] = {}
    if tp_rank == 0:
        assert iterator is not None  # segments.segment_provider opens the data on these ranks
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
    # The one time that a micro-batch's boundaries are read back from the device.
    lengths = tuple(items["cu_seqlens"].squeeze(0).diff().tolist())
    packed = DocumentPack.of(lengths, args.context_parallel_size, mpu.get_context_parallel_rank())
    sequences = {key: items[key] for key in SEQUENCE_KEYS}
    if packed.local_indices is not None:
        for key, whole in sequences.items():
            if whole is not None:
                sequences[key] = whole.index_select(1, packed.local_indices)
    return Batch(packed=packed, **sequences)
