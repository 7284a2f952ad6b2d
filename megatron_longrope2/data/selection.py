"""Which documents are worth tokenizing: those of lengths of which a bucket still needs tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_longrope2.data.settings import Bucket

_ADDED_TOKENS = 2
"""BOS and EOS."""


@dataclass(frozen=True)
class Selection:
    """What buckets still need.

    What a tokenized document belongs to is exact. Whether one is tokenized follows from its characters: a
    document whose characters a token lie outside the given range may be passed over although a bucket would
    have taken it.

    Attributes:
        feeds: the buckets, with the lengths of the documents that they take tokens from.
        room: tokens that each of them still takes, in the same order; with the last document it may take
            more.
        characters_per_token: the range of the text's.
    """

    feeds: Sequence[Bucket]
    room: Sequence[int]
    characters_per_token: tuple[float, float]

    @property
    def full(self) -> bool:
        """Whether no bucket needs anything."""
        return max(self.room) <= 0

    def without(self, tokens: Sequence[int]) -> "Selection":
        """What is still needed once each bucket has got so many tokens."""
        room = [room - taken for room, taken in zip(self.room, tokens, strict=True)]
        return Selection(self.feeds, room, self.characters_per_token)

    def wanted(self, fewest: int, most: int) -> bool:
        """Whether a document of `fewest` to `most` characters may have a length that a bucket needs."""
        low, high = self.characters_per_token
        return any(
            room > 0
            and most > (bucket.longer_than - _ADDED_TOKENS) * low
            and (bucket.at_most is None or fewest <= bucket.at_most * high)
            for bucket, room in zip(self.feeds, self.room, strict=True)
        )
