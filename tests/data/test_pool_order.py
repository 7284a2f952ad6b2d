"""Shares are exact, and the windows are mixed inside every global batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope2.data.segments import PoolOrder
from megatron_longrope2.errors import InputError

WEIGHTS = st.lists(st.integers(1, 20), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS, batch=st.integers(1, 32), batches=st.integers(1, 12), seed=st.integers(0, 9))
def test_every_pool_is_read_in_order_without_gap_and_in_its_share(
    weights: list[int], batch: int, batches: int, seed: int
) -> None:
    order = PoolOrder(weights, batch, seed)
    drawn: list[list[int]] = [[] for _ in weights]
    for i in range(batches):
        for j in range(batch):
            pool, index = order.locate(i * batch + j)
            drawn[pool].append(index)
        # After every whole global batch: no sample of a pool twice, none left out.
        for indices in drawn:
            assert sorted(indices) == list(range(len(indices)))
    counts = [len(indices) for indices in drawn]
    assert counts == order.counts(batch * batches)
    shares = np.array(weights) / sum(weights) * batch * batches
    assert np.abs(counts - shares).max() <= (len(weights) + 1) / 2


def test_the_papers_ratio_is_exact_over_a_run() -> None:
    assert PoolOrder([3, 3, 4], 64, seed=0).counts(64 * 1000) == [19200, 19200, 25600]


def test_windows_are_mixed_at_random_inside_a_global_batch() -> None:
    order = PoolOrder([1, 1], 64, seed=1)
    batches = [[order.locate(64 * b + i)[0] for i in range(64)] for b in range(20)]
    assert all(sum(batch) == 32 for batch in batches)
    assert len({tuple(batch) for batch in batches}) == 20
    first = np.mean([batch[0] for batch in batches])
    assert 0.2 < first < 0.8


def test_any_order_of_access_gives_the_same_answer() -> None:
    order = PoolOrder([3, 2, 7], 16, seed=5)
    indices = np.random.default_rng(0).permutation(200).tolist()
    shuffled = {i: order.locate(i) for i in indices}
    assert shuffled == {i: PoolOrder([3, 2, 7], 16, seed=5).locate(i) for i in range(200)}


def test_weights_without_a_small_ratio_are_refused() -> None:
    assert PoolOrder([3_000_000_000, 7_000_000_000], 8, seed=0).weights.tolist() == [3, 7]
    with pytest.raises(InputError, match="3000000001, 7000000000 have no small common ratio"):
        PoolOrder([3_000_000_001, 7_000_000_000], 8, seed=0)
