"""A micro-batch is what the data loader drew, one pack, and this rank's part of it."""

from argparse import Namespace
from itertools import pairwise

import pytest
import torch

from megatron_longrope2.model.pack import DocumentPack
from megatron_longrope2.training import batch as module
from megatron_longrope2.training.batch import Batch, next_batch


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


@pytest.mark.parametrize(("first", "last"), [(True, True), (True, False), (False, False), (False, True)])
def test_a_stage_gets_what_it_needs_of_its_tokens(
    monkeypatch: pytest.MonkeyPatch, first: bool, last: bool
) -> None:
    monkeypatch.setattr(module.mpu, "is_pipeline_first_stage", lambda: first)
    monkeypatch.setattr(module.mpu, "is_pipeline_last_stage", lambda: last)
    monkeypatch.setattr(module.mpu, "get_context_parallel_rank", lambda: 1)
    names = ("tokens", "labels", "loss_mask", "position_ids")
    drawn = {name: torch.arange(24).view(2, 12) + 100 * number for number, name in enumerate(names)}
    # Boundaries are filled up at the end, so that every item has the same width.
    drawn["cu_seqlens"] = torch.tensor([[0, 4, 12, 12], [0, 12, 12, 12]], dtype=torch.int32)
    drawn["max_seqlen"] = torch.tensor([8, 12])
    found = next_batch(iter([drawn]), Namespace(context_parallel_size=2))
    assert found.packed.lengths == (4, 8, 12)
    own = [1, 2, 6, 7, 8, 9, 15, 16, 17, 18, 19, 20]
    for number, name in enumerate(names):
        value = getattr(found, name)
        if name in (("tokens", "position_ids") if first else ()) + (("labels", "loss_mask") if last else ()):
            assert value.tolist() == [[100 * number + place for place in own]]
        else:
            assert value is None
