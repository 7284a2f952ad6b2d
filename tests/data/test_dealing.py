"""Segments are dealt so that ranks work alike, as Megatron's sampler then takes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.training.datasets.data_samplers import MegatronPretrainingSampler

from megatron_longrope2.data.dealing import deal


def taken(order: np.ndarray, ranks: int, micro_batch_size: int) -> list[list[int]]:
    """Which segments of a global batch each rank reads, in its order, by Megatron's own sampler."""
    samplers = [
        MegatronPretrainingSampler(len(order), 0, micro_batch_size, rank, ranks) for rank in range(ranks)
    ]
    return [[int(order[place]) for batch in sampler for place in batch] for sampler in samplers]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[float], int, int]:
    ranks, micro_batch_size, steps = (draw(st.integers(1, 4)) for _ in range(3))
    count = ranks * micro_batch_size * steps
    return draw(st.lists(st.floats(0, 1e9), min_size=count, max_size=count)), ranks, micro_batch_size


@given(batches())
def test_every_segment_goes_to_one_rank_and_no_rank_is_more_than_a_segment_behind(
    batch: tuple[list[float], int, int],
) -> None:
    work, ranks, micro_batch_size = batch
    hands = taken(deal(work, ranks, micro_batch_size), ranks, micro_batch_size)
    assert sorted(number for hand in hands for number in hand) == list(range(len(work)))
    assert all(hand == sorted(hand) for hand in hands)
    sums = [sum(work[number] for number in hand) for hand in hands]
    assert max(sums) - min(sums) <= max(work) * (1 + 1e-12)


@pytest.mark.parametrize("long", range(9))
def test_two_kinds_are_dealt_as_evenly_as_can_be(long: int) -> None:
    work = np.random.default_rng(0).permutation([16.0] * long + [1.0] * (8 - long)).tolist()
    hands = taken(deal(work, 4), 4, 1)
    counts = [sum(work[number] == 16 for number in hand) for hand in hands]
    assert max(counts) - min(counts) <= 1
