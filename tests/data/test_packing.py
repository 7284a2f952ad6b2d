"""Packing loses nothing, fits, and wastes little."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope2.data.packing import Packing, pack_cut, pack_whole, round_up

ALIGNMENTS = st.sampled_from([1, 2, 4, 8, 16])


def spans_of(packing: Packing, alignment: int) -> list[int]:
    return [
        sum(round_up(length, alignment) for _, _, length in packing.pieces(segment))
        for segment in range(packing.segments)
    ]


def covered(packing: Packing, lengths: np.ndarray) -> list[np.ndarray]:
    """How often each token of each document is used."""
    uses = [np.zeros(length, dtype=int) for length in lengths]
    for segment in range(packing.segments):
        for document, offset, length in packing.pieces(segment):
            uses[document][offset : offset + length] += 1
    return uses


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60),
    segment_length=st.sampled_from([64, 128, 256]),
    alignment=ALIGNMENTS,
    seed=st.integers(0, 99),
)
def test_whole_documents_are_each_used_once_and_fit(
    lengths: list[int], segment_length: int, alignment: int, seed: int
) -> None:
    array = np.array(lengths, dtype=np.int32)
    packing = pack_whole(array, segment_length, alignment=alignment, min_length=1, seed=[seed])
    assert sorted(packing.document.tolist()) == list(range(len(lengths)))
    assert not packing.offset.any()
    assert (packing.length == array[packing.document]).all()
    assert max(spans_of(packing, alignment)) <= segment_length
    assert all(packing.pieces(segment) for segment in range(packing.segments))


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=40),
    segment_length=st.sampled_from([64, 128, 256]),
    alignment=ALIGNMENTS,
    seed=st.integers(0, 99),
)
def test_cut_documents_use_every_token_once_and_fill_every_segment_but_the_last(
    lengths: list[int], segment_length: int, alignment: int, seed: int
) -> None:
    array = np.array(lengths, dtype=np.int32)
    packing = pack_cut(array, segment_length, alignment=alignment, min_length=1, seed=[seed])
    assert all((uses == 1).all() for uses in covered(packing, array))
    spans = spans_of(packing, alignment)
    assert all(span == segment_length for span in spans[:-1])
    assert 0 < spans[-1] <= segment_length


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    min_length=st.integers(1, 30),
    seed=st.integers(0, 9),
)
def test_what_is_too_small_is_left_out_and_counted(lengths: list[int], min_length: int, seed: int) -> None:
    array = np.array(lengths, dtype=np.int32)
    small = array[array < min_length]
    whole = pack_whole(array, 512, alignment=8, min_length=min_length, seed=[seed])
    assert whole.dropped_tokens == small.sum()
    for packing in (whole, pack_cut(array, 128, alignment=8, min_length=min_length, seed=[seed])):
        assert packing.tokens + packing.dropped_tokens == array.sum()
        assert (packing.length >= min_length).all()


def test_documents_of_exactly_one_segment_are_not_cut() -> None:
    """Needle rows are written as documents of T tokens and must come out whole."""
    packing = pack_cut(np.full(20, 128), 128, alignment=8, min_length=1, seed=[0])
    assert packing.segments == 20
    assert not packing.offset.any()
    assert (packing.length == 128).all()


@pytest.mark.parametrize("alignment", [1, 8, 16])
def test_waste_is_below_one_percent_for_documents_of_realistic_length(alignment: int) -> None:
    """Web text: median about 700 tokens, log-normal, cut at the short window of 8192; T is 131072."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(8192, rng.lognormal(np.log(700), 1.1, size=40_000)).astype(np.int32) + 1
    lengths = np.minimum(lengths, 8192)
    packing = pack_whole(lengths, 131072, alignment=alignment, min_length=1, seed=[0])
    waste = 1 - packing.tokens / (packing.segments * 131072)
    assert waste < 0.01


def test_the_seed_decides_the_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, size=200)
    for pack in (pack_whole, pack_cut):
        one, same, other = (pack(lengths, 128, alignment=2, min_length=1, seed=[s]) for s in (1, 1, 2))
        assert (one.document == same.document).all()
        assert one.document.tolist() != other.document.tolist()
