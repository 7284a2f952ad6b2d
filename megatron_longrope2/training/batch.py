"""From the data loader's items to what a pipeline stage's forward pass takes.

In Megatron-LM `pretrain_gpt.py` does this, which is not part of the wheel. There one tensor-parallel rank
reads and broadcasts; here every rank has a data loader of the same segments, so that the documents'
boundaries are known on the host and nothing has to be read back from the device.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

from megatron.core import mpu
from megatron.core.utils import flatten_batch_for_packed_sequences
from torch import Tensor

from megatron_longrope2.model.pack import DocumentPack


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


def next_batch(iterator: Iterator[dict[str, Tensor]], args: Namespace) -> Batch:
    """Draw a micro-batch; keep this context-parallel rank's tokens, on its device."""
    items = flatten_batch_for_packed_sequences(next(iterator))
    lengths = tuple(items["cu_seqlens"].squeeze(0).diff().tolist())
    packed = DocumentPack.of(lengths, args.context_parallel_size, mpu.get_context_parallel_rank())
    first, last = mpu.is_pipeline_first_stage(), mpu.is_pipeline_last_stage()

    def local(key: str, needed: bool) -> Tensor | None:
        if not needed:
            return None
        row = items[key].cuda(non_blocking=True)
        return row if packed.local_indices is None else row.index_select(1, packed.local_indices)

    return Batch(
        tokens=local("tokens", first),
        labels=local("labels", last),
        loss_mask=local("loss_mask", last),
        position_ids=local("position_ids", first),
        packed=packed,
    )
