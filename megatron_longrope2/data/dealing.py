"""Which data-parallel rank gets which segments of a global batch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def deal(work: Sequence[float], ranks: int, micro_batch_size: int = 1) -> NDArray[np.int64]:
    """An order of a global batch's segments in which the ranks' work is as equal as it can be made.

    The heaviest segment that is left goes to the rank with the least work that still has room: exact where
    there are two kinds of segments, and at most a segment off otherwise. A rank's segments keep their order.

    Args:
        work: of each segment, any unit.
        ranks: data-parallel ranks; each gets the same number of segments.
        micro_batch_size: segments that a rank takes at once.

    Returns:
        Numbers of segments [global batch]: micro-batches in turn, and in each the ranks in turn, which is how
        Megatron's `MegatronPretrainingSampler` (megatron/training/datasets/data_samplers.py) takes them.
    """
    room = len(work) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    sums = [0.0] * ranks
    for segment in sorted(range(len(work)), key=lambda number: -work[number]):
        lightest = min((rank for rank in range(ranks) if len(hands[rank]) < room), key=sums.__getitem__)
        hands[lightest].append(segment)
        sums[lightest] += work[segment]
    by_rank = np.array([sorted(hand) for hand in hands], dtype=np.int64)
    return by_rank.reshape(ranks, -1, micro_batch_size).swapaxes(0, 1).ravel()
