import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_longrope2.model.pack import local_token_indices


@st.composite
def packs(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    cp_size = draw(st.sampled_from([1, 2, 4, 8]))
    chunks = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    lengths = torch.tensor([0, *(2 * cp_size * chunk for chunk in chunks)])
    return lengths.cumsum(0).to(torch.int32), cp_size


def test_two_ranks_by_hand() -> None:
    # Two documents of 8 and 4 tokens; with 2 ranks their chunks are 2 tokens and 1 token.
    boundaries = torch.tensor([0, 8, 12])
    assert local_token_indices(boundaries, 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert local_token_indices(boundaries, 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


@given(packs())
def test_ranks_share_out_every_token_once(pack: tuple[torch.Tensor, int]) -> None:
    boundaries, cp_size = pack
    shards = [local_token_indices(boundaries, cp_size, rank) for rank in range(cp_size)]
    assert {len(shard) for shard in shards} == {int(boundaries[-1]) // cp_size}
    assert sorted(torch.cat(shards).tolist()) == list(range(int(boundaries[-1])))


@given(packs())
def test_causal_work_is_shared_out_equally(pack: tuple[torch.Tensor, int]) -> None:
    """The sum of the tokens' places in their documents, which is what causal attention costs."""
    boundaries, cp_size = pack
    lengths = boundaries.diff()
    place = torch.arange(int(boundaries[-1])) - boundaries[:-1].repeat_interleave(lengths)
    work = {int(place[local_token_indices(boundaries, cp_size, rank)].sum()) for rank in range(cp_size)}
    assert len(work) == 1
