"""What a pack tells the layers: its documents, and each rank's queries and keys."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_longrope2.model.pack import DocumentPack


def test_is_upstreams_description() -> None:
    pack = DocumentPack.of((3, 0, 5, 0))
    assert isinstance(pack, PackedSeqParams)
    assert pack.qkv_format == "thd"
    assert pack.cu_seqlens_q.tolist() == pack.cu_seqlens_kv.tolist() == [0, 3, 8]
    assert pack.cu_seqlens_q.dtype == torch.int32
    assert pack.max_seqlen_q == pack.max_seqlen_kv == 5
    assert pack.lengths == (3, 5)  # the data loader fills boundaries up, so that all items are of one width


def test_one_rank_has_a_segment_per_document() -> None:
    pack = DocumentPack.of((3, 5))
    assert pack.queries == pack.keys == pack.lengths
    assert pack.query_boundaries.tolist() == pack.key_boundaries.tolist() == [0, 3, 8]
    assert pack.local_indices is pack.key_indices is None


@st.composite
def shared_packs(draw: st.DrawFn) -> list[DocumentPack]:
    """The same pack as each of its ranks has it."""
    cp_size = draw(st.sampled_from([2, 4]))
    chunks = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
    lengths = tuple(2 * cp_size * chunk for chunk in chunks)
    return [DocumentPack.of(lengths, cp_size, rank) for rank in range(cp_size)]


@given(shared_packs())
def test_keys_of_a_segment_reach_from_its_documents_start_to_its_last_query(
    packs: list[DocumentPack],
) -> None:
    laid_end_to_end = torch.cat([pack.local_indices for pack in packs])
    for pack in packs:
        starts = pack.cu_seqlens_q[:-1].repeat_interleave(2).tolist()
        queries = pack.local_indices.split(pack.queries)
        keys = laid_end_to_end[pack.key_indices].split(pack.keys)
        assert len(queries) == len(keys) == len(starts)
        for start, query, key in zip(starts, queries, keys, strict=True):
            assert key.tolist() == list(range(start, int(query[-1]) + 1))
        for boundaries, counts in ((pack.query_boundaries, pack.queries), (pack.key_boundaries, pack.keys)):
            assert [end - start for start, end in pairwise(boundaries.tolist())] == list(counts)


def test_each_token_knows_its_place_and_its_document() -> None:
    pack = DocumentPack.of((2, 3, 0))
    assert pack.positions.tolist() == [0, 1, 0, 1, 2]
    assert pack.document_lengths.tolist() == [2, 2, 3, 3, 3]


@given(shared_packs())
def test_context_parallel_ranks_know_it_of_their_tokens(packs: list[DocumentPack]) -> None:
    whole = DocumentPack.of(packs[0].lengths)
    for pack in packs:
        assert torch.equal(pack.positions, whole.positions[pack.local_indices])
        assert torch.equal(pack.document_lengths, whole.document_lengths[pack.local_indices])
