"""Which token belongs to which document, on one rank and on context-parallel ranks."""

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_longrope2.model.context_parallel import local_token_indices
from megatron_longrope2.training.batch import Batch, pack_params


def batch(boundaries: list[int], *, cp_size: int = 1, cp_rank: int = 0) -> Batch:
    """A micro-batch of documents that end at `boundaries`; every token has a loss."""
    cu_seqlens = torch.tensor([0, *boundaries], dtype=torch.int32)
    local = local_token_indices(cu_seqlens, cp_size, cp_rank) if cp_size > 1 else None
    return Batch(
        tokens=None,
        labels=None,
        loss_mask=torch.ones(1, boundaries[-1] // cp_size),
        position_ids=None,
        packed=pack_params(cu_seqlens, int(cu_seqlens.diff().max())),
        local_indices=local,
    )


def test_pack_params_are_upstreams() -> None:
    packed = pack_params(torch.tensor([0, 3, 8], dtype=torch.int32), 5)
    assert isinstance(packed, PackedSeqParams)
    assert packed.qkv_format == "thd"
    assert packed.cu_seqlens_q is packed.cu_seqlens_kv
    assert packed.max_seqlen_q == packed.max_seqlen_kv == 5


def test_documents_of_tokens() -> None:
    assert batch([2, 5]).documents().tolist() == [0, 0, 1, 1, 1]


def test_boundaries_filled_up_at_the_end_hold_no_token() -> None:
    # As the data loader writes them, so that every item has the same width.
    assert batch([2, 5, 5, 5]).documents().tolist() == [0, 0, 1, 1, 1]


def test_context_parallel_ranks_know_their_tokens() -> None:
    whole = batch([4, 12])
    shares = [batch([4, 12], cp_size=2, cp_rank=rank) for rank in range(2)]
    assert shares[0].documents().tolist() == [0, 0, 1, 1, 1, 1]
    assert shares[0].places().tolist() == [0, 3, 4, 5, 10, 11]
    for share in shares:
        assert torch.equal(whole.documents()[share.places()], share.documents())
    together = torch.cat([share.places() for share in shares])
    assert together.sort().values.tolist() == list(range(12))
