"""Which token belongs to which document, on one rank and on context-parallel ranks."""

from itertools import pairwise

import torch

from megatron_longrope2.model.pack import DocumentPack
from megatron_longrope2.training.batch import Batch


def batch(boundaries: list[int], *, cp_size: int = 1, cp_rank: int = 0) -> Batch:
    """A micro-batch of documents that end at `boundaries`; every token has a loss."""
    lengths = tuple(end - start for start, end in pairwise([0, *boundaries]))
    return Batch(
        tokens=None,
        labels=None,
        loss_mask=torch.ones(1, boundaries[-1] // cp_size),
        position_ids=None,
        packed=DocumentPack.of(lengths, cp_size, cp_rank),
    )


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
