"""Which documents, or pieces of them, share a training segment: index arithmetic that reads no token.

A *span* is the place of a document (or a piece) in the segment: its tokens, then padding up to a multiple of
`alignment`, so that every context-parallel rank gets the same share of it.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# How many unfilled segments best fit chooses from. More of them cost time and save nothing measurable.
_OPEN_SEGMENTS = 1024


@dataclass(frozen=True)
class Packing:
    """The pieces of every segment; segment j holds pieces `starts[j]` to `starts[j + 1] - 1`.

    Attributes:
        starts: int64 [segments + 1].
        document: int64 [pieces], index of the document in its pool.
        offset: int64 [pieces], the piece's first token within the document.
        length: int64 [pieces], tokens of the piece without padding.
        dropped_tokens: tokens of the pieces that are left out as too small for the parallel layout.
    """

    starts: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    dropped_tokens: int

    @property
    def segments(self) -> int:
        """Number of segments."""
        return len(self.starts) - 1

    @property
    def tokens(self) -> int:
        """Tokens of all segments without padding."""
        return int(self.length.sum())

    def pieces(self, segment: int) -> list[tuple[int, int, int]]:
        """(document, offset, length) of each piece of one segment, in order."""
        these = slice(int(self.starts[segment]), int(self.starts[segment + 1]))
        columns = (self.document, self.offset, self.length)
        return list(zip(*(column[these].tolist() for column in columns), strict=True))


def round_up[T: (int, np.ndarray)](length: T, alignment: int) -> T:
    """The smallest multiple of `alignment` that is at least `length`."""
    return -(-length // alignment) * alignment


def pack_whole(
    lengths: np.ndarray, segment_length: int, *, alignment: int, min_length: int, seed: Sequence[int]
) -> Packing:
    """Pack whole documents without cutting any: best fit over the documents in random order.

    Args:
        lengths: int [documents], tokens of each document, at most `segment_length`.
        segment_length: tokens of a segment, a multiple of `alignment`.
        alignment: every span is a multiple of this many tokens.
        min_length: documents of fewer tokens are dropped and counted.
        seed: seed of the order; the same seed gives the same packing.
    """
    kept = np.flatnonzero(lengths >= min_length)
    order = np.random.default_rng(seed).permutation(kept)
    spans = round_up(lengths[order].astype(np.int64), alignment)
    segment_of = np.empty(len(order), dtype=np.int64)
    open_segments: list[tuple[int, int]] = []  # (room left, segment), sorted
    segments = 0
    for i, span in enumerate(spans.tolist()):
        at = bisect_left(open_segments, (span, -1))
        if at < len(open_segments):
            room, segment = open_segments.pop(at)
        else:
            room, segment = segment_length, segments
            segments += 1
            if len(open_segments) == _OPEN_SEGMENTS:
                del open_segments[0]  # the fullest segment: closing it loses the least
        segment_of[i] = segment
        if room > span:
            insort(open_segments, (room - span, segment))
    grouped = np.argsort(segment_of, kind="stable")
    document = order[grouped]
    starts = np.searchsorted(segment_of[grouped], np.arange(segments + 1))
    return Packing(
        starts.astype(np.int64),
        document.astype(np.int64),
        np.zeros(len(document), dtype=np.int64),
        lengths[document].astype(np.int64),
        dropped_tokens=int(lengths.sum(dtype=np.int64) - lengths[kept].sum(dtype=np.int64)),
    )


def pack_cut(
    lengths: np.ndarray, segment_length: int, *, alignment: int, min_length: int, seed: Sequence[int]
) -> Packing:
    """Lay documents end to end in random order and cut the line every `segment_length` tokens.

    A document that crosses a cut continues in the next segment. The arguments are those of `pack_whole`, but
    documents may be longer than a segment, and `min_length` applies to pieces.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    spans = round_up(lengths[order].astype(np.int64), alignment)
    begins = np.concatenate(([0], np.cumsum(spans)))
    cuts = np.arange(0, begins[-1], segment_length)
    # A piece starts where a document starts and where a segment starts.
    places = np.union1d(begins[:-1], cuts)
    owner = np.searchsorted(begins, places, side="right") - 1
    document = order[owner]
    offset = places - begins[owner]
    ends = np.append(places[1:], begins[-1])
    length = np.minimum(ends - places, lengths[document] - offset)
    kept = length >= min_length
    starts = np.searchsorted(places[kept] // segment_length, np.arange(len(cuts) + 1))
    return Packing(
        starts.astype(np.int64),
        document[kept].astype(np.int64),
        offset[kept].astype(np.int64),
        length[kept].astype(np.int64),
        dropped_tokens=int(length[~kept].sum()),
    )
