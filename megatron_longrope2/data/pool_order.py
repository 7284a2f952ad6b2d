"""The order in which the pools take turns: exact shares, mixed at random within every global batch."""

from collections.abc import Sequence
from math import gcd

import numpy as np

from megatron_longrope2.errors import InputError

_LONGEST_PATTERN = 10_000_000


class PoolOrder:
    """Maps a sample's index in the run to (pool, how many samples of that pool came before it).

    The pools take turns in a fixed pattern of `sum(weights)` slots that holds each pool exactly `weight`
    times, evenly spread, and repeats for ever; inside each global batch the slots are shuffled. Everything
    is a function of (weights, global_batch_size, seed, index) alone, so that a run can resume at any sample.
    After any number of whole global batches a pool's count differs from its exact share by at most
    `(pools + 1) / 2`; after a whole number of patterns it is exact.

    Args:
        weights: whole numbers of at least 1, one for each pool.
        global_batch_size: number of samples that are mixed with each other.
        seed: seed of the shuffle.

    Raises:
        InputError: the pattern would be longer than ten million slots.
    """

    def __init__(self, weights: Sequence[int], global_batch_size: int, seed: int) -> None:
        divisor = gcd(*weights)
        self.weights = np.array([weight // divisor for weight in weights], dtype=np.int64)
        if self.weights.sum() > _LONGEST_PATTERN:
            raise InputError(
                f"weights: {', '.join(map(str, weights))} have no small common ratio; use smaller numbers"
            )
        # The k-th sample of a pool is due at (k + 1/2) / weight of the pattern.
        due = np.concatenate([(np.arange(weight) + 0.5) / weight for weight in self.weights])
        pool = np.repeat(np.arange(len(self.weights)), self.weights)
        order = np.argsort(due, kind="stable")
        self._pattern = pool[order]
        self._rank = np.concatenate([np.arange(weight) for weight in self.weights])[order]
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._shuffled: tuple[int, np.ndarray] | None = None  # of the latest global batch

    def locate(self, index: int) -> tuple[int, int]:
        """(pool, index within the pool's own endless sequence) of sample `index`."""
        block, place = divmod(index, self._global_batch_size)
        slot = block * self._global_batch_size + int(self._shuffle(block)[place])
        turn, step = divmod(slot, len(self._pattern))
        pool = int(self._pattern[step])
        return pool, int(turn * self.weights[pool] + self._rank[step])

    def counts(self, samples: int) -> list[int]:
        """Samples of each pool in the global batches that the first `samples` samples touch."""
        slots = -(-samples // self._global_batch_size) * self._global_batch_size
        turns, rest = divmod(slots, len(self._pattern))
        partial = np.bincount(self._pattern[:rest], minlength=len(self.weights))
        return [int(n) for n in turns * self.weights + partial]

    def _shuffle(self, block: int) -> np.ndarray:
        if self._shuffled is None or self._shuffled[0] != block:
            shuffle = np.random.default_rng([self._seed, block]).permutation(self._global_batch_size)
            self._shuffled = (block, shuffle)
        return self._shuffled[1]
