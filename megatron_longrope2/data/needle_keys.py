"""The keys of needle samples: adjective-noun pairs, a fixed fifth of them held out."""

import hashlib
from itertools import product
from typing import Literal

from megatron_longrope2.errors import InputError

HELD_OUT_SHARE = 0.2

# Common words, so that a small vocabulary needs few tokens for them. "island" is left out: a tiny model took
# its "is" for the one before the number.
_ADJECTIVES = """
ancient bold brave bright broad calm clean clear cold deep early fair gentle golden great green happy heavy
high holy little long mighty new noble old plain proud quiet red rich silent silver small strong sweet tall
warm white wise
"""
_NOUNS = """
altar arrow basket boat bread bridge candle castle cedar cloud crown desert door eagle field fire forest
fountain garden gate harp hill horse house lamp lion meadow mountain ocean path pillar river rock ship star
stone sword tower tree vine
"""
ADJECTIVES = _ADJECTIVES.split()
NOUNS = _NOUNS.split()

Keys = Literal["train", "held_out", "all"]


def key_pool(keys: Keys) -> list[str]:
    """The adjective-noun keys of one split; 20 % of all are held out, always the same ones.

    Raises:
        InputError: `keys` is none of "train", "held_out", "all".
    """
    every = [f"{adjective} {noun}" for adjective, noun in product(ADJECTIVES, NOUNS)]
    by_hash = sorted(every, key=lambda key: hashlib.sha256(key.encode()).digest())
    count = round(HELD_OUT_SHARE * len(by_hash))
    pools = {"held_out": by_hash[:count], "train": by_hash[count:], "all": by_hash}
    if keys not in pools:
        raise InputError(f"keys: {keys!r} is not a split; use one of {', '.join(pools)}")
    return pools[keys]
