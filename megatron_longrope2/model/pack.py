"""A pack: documents laid end to end in one row, shared out among the context-parallel ranks."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(kw_only=True)
class DocumentPack(PackedSeqParams):
    """Upstream's description of a pack, with all that a layer would otherwise read back from the device.

    It is made once per micro-batch and travels with it through every layer, recomputed layers included. The
    queries of a rank come in segments, each at the end of a run of keys: one segment per document, or with
    context parallelism two, the chunks r and `2 * cp - 1 - r` of rank r.

    Attributes:
        lengths: tokens of each document; none is empty.
        positions: of each token of this rank in its document, int64 [tokens / cp].
        document_lengths: tokens of the document of each token of this rank, int64 [tokens / cp].
        queries, keys: how many of them each segment has.
        query_boundaries, key_boundaries: their running sums from 0, int32 [segments + 1].
        local_indices: where this rank's tokens stand in the pack, int64 [tokens / cp]; None if it has all.
        key_indices: where the keys of all segments stand in the ranks' tokens laid end to end, int64
            [sum of `keys`]; None if this rank has all tokens: then they are the pack itself.
    """

    # Packs are compared as objects, so that what layers ask of one can be remembered for it.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    lengths: tuple[int, ...]
    positions: Tensor
    document_lengths: Tensor
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    query_boundaries: Tensor
    key_boundaries: Tensor
    local_indices: Tensor | None
    key_indices: Tensor | None

    @staticmethod
    @lru_cache(maxsize=8)  # batch rows are of one length in every layer
    def of(lengths: tuple[int, ...], cp_size: int = 1, cp_rank: int = 0) -> "DocumentPack":
        """The pack of documents of these lengths, its tensors on this process's device.

        Args:
            lengths: tokens of each document, multiples of `2 * cp_size` with context parallelism; documents
                of length 0 are left out.
            cp_size: number of ranks that share the pack.
            cp_rank: this rank.
        """
        device = torch.cuda.current_device()
        lengths = queries = keys = tuple(length for length in lengths if length)
        boundaries = _running_sums(lengths)
        of_document = torch.tensor(lengths)
        document_lengths = of_document.repeat_interleave(of_document)
        positions = torch.arange(len(document_lengths)) - boundaries[:-1].repeat_interleave(of_document)
        local = indices = None
        if cp_size > 1:
            chunks = [length // (2 * cp_size) for length in lengths]
            queries = tuple(chunk for chunk in chunks for _ in range(2))
            keys = tuple(chunk * n for chunk in chunks for n in (cp_rank + 1, 2 * cp_size - cp_rank))
            shards = [local_token_indices(boundaries, cp_size, rank) for rank in range(cp_size)]
            order = torch.cat(shards).argsort()
            starts = boundaries[:-1].repeat_interleave(2).tolist()
            runs = [order[start : start + count] for start, count in zip(starts, keys, strict=True)]
            local, indices = shards[cp_rank], torch.cat(runs)
            positions, document_lengths = positions[local], document_lengths[local]

        def on_device(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        boundaries = on_device(boundaries)
        return DocumentPack(
            qkv_format="thd",
            cu_seqlens_q=boundaries,
            cu_seqlens_kv=boundaries,
            max_seqlen_q=max(lengths),
            max_seqlen_kv=max(lengths),
            lengths=lengths,
            positions=on_device(positions),
            document_lengths=on_device(document_lengths),
            queries=queries,
            keys=keys,
            query_boundaries=on_device(_running_sums(queries)),
            key_boundaries=on_device(_running_sums(keys)),
            local_indices=None if local is None else on_device(local),
            key_indices=None if indices is None else on_device(indices),
        )


@lru_cache(maxsize=8)  # every layer asks again
def longer_than(pack: DocumentPack, length: int) -> Tensor | bool:
    """Which of this rank's tokens belong to documents of more than `length` tokens.

    One answer where it is the same for all documents, else bool [tokens / cp, 1, 1, 1].
    """
    answers = {document > length for document in pack.lengths}
    if len(answers) == 1:
        return answers.pop()
    return (pack.document_lengths > length)[:, None, None, None]


def _running_sums(numbers: Iterable[int]) -> Tensor:
    """Sums from 0 on, int32 [numbers + 1], on the CPU."""
    return torch.tensor([0, *accumulate(numbers)], dtype=torch.int32)


def local_token_indices(cu_seqlens: Tensor, cp_size: int, cp_rank: int) -> Tensor:
    """Positions in the full pack of one rank's tokens, in the order in which the rank holds them.

    Every document is cut into `2 * cp_size` equal chunks; rank r holds chunks r and `2 * cp_size - 1 - r`, so
    that causal attention costs each rank the same. It is what Transformer Engine's
    `thd_get_partitioned_indices` returns, which needs CUDA.

    Args:
        cu_seqlens: document boundaries, [documents + 1]; every length a multiple of `2 * cp_size`.
        cp_size: number of ranks that share the sequence.
        cp_rank: this rank.

    Returns:
        Long tensor of `cu_seqlens[-1] / cp_size` positions, on the device of `cu_seqlens`.
    """
    boundaries = cu_seqlens.to(torch.int64)
    chunks = boundaries.diff() // (2 * cp_size)
    # Each document gives two runs of `chunk` consecutive positions.
    starts = torch.stack([boundaries[:-1] + cp_rank * chunks, boundaries[1:] - (cp_rank + 1) * chunks], dim=1)
    lengths = chunks.repeat_interleave(2)
    first_of_run = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)[:-1]])
    within_run = torch.arange(int(lengths.sum()), device=cu_seqlens.device) - first_of_run.repeat_interleave(
        lengths
    )
    return starts.flatten().repeat_interleave(lengths) + within_run
