"""The kinds of mapping: their layout, written the long way, and that both ways undo each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope2.checkpoint.architectures import ARCHITECTURES
from megatron_longrope2.checkpoint.mapping import QKV, JoinInPlace, Mapping, Vocabulary
from megatron_longrope2.model.dims import ModelDims

sizes = st.builds(
    lambda groups, queries, head, hidden, ffn, vocab, pad: ModelDims(
        name="random",
        num_layers=1,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=groups * queries,
        num_query_groups=groups,
        kv_channels=head,
        vocab_size=vocab,
        vocab_padding=pad,
        original_length=1,
    ),
    *(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
    *(st.integers(1, 7), st.integers(1, 9), st.integers(0, 5)),
)


def random_parts(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    return [torch.randn(shape) for shape in shapes]


@given(dims=sizes)
@settings(deadline=None)
def test_both_ways_undo_each_other(dims: ModelDims) -> None:
    for table in ARCHITECTURES.values():
        for mapping in (*table.mappings(tied=False), *table.biases):
            parts = random_parts(mapping.hf_shapes(dims))
            tensor = mapping.to_megatron(parts, dims)
            assert tuple(tensor.shape) == mapping.megatron_shape(dims)
            back = mapping.to_hf(tensor, dims)
            assert len(back) == len(parts) == len(mapping.hf)
            assert all(torch.equal(one, other) for one, other in zip(back, parts, strict=True))


@given(dims=sizes)
@settings(deadline=None)
def test_qkv_interleaves_groups(dims: ModelDims) -> None:
    query, key, value = random_parts(QKV("m", ("q", "k", "v")).hf_shapes(dims))
    head, per_group = dims.kv_channels, dims.num_attention_heads // dims.num_query_groups
    rows = []
    for group in range(dims.num_query_groups):
        for number in range(group * per_group, (group + 1) * per_group):
            rows += [query[number * head + row] for row in range(head)]
        rows += [key[group * head + row] for row in range(head)]
        rows += [value[group * head + row] for row in range(head)]
    wanted = torch.stack(rows)
    assert torch.equal(QKV("m", ("q", "k", "v")).to_megatron([query, key, value], dims), wanted)
    fused = torch.cat([query, key, value])
    assert torch.equal(QKV("m", ("qkv",), rows=("qkv_size",)).to_megatron([fused], dims), wanted)


@given(dims=sizes)
@settings(deadline=None)
def test_gate_stands_before_up(dims: ModelDims) -> None:
    mapping = Mapping("m", ("gate", "up"), rows=("ffn_hidden_size", "ffn_hidden_size"))
    gate, up = random_parts(mapping.hf_shapes(dims))
    assert torch.equal(mapping.to_megatron([gate, up], dims), torch.cat([gate, up]))


@given(dims=sizes)
@settings(deadline=None)
def test_vocabulary_is_padded_with_zero_rows(dims: ModelDims) -> None:
    mapping = Vocabulary("m", ("hf",))
    tensor = mapping.to_megatron(random_parts(mapping.hf_shapes(dims)), dims)
    assert not tensor[dims.vocab_size :].any()
    assert tensor.shape[0] == dims.padded_vocab_size


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_table_names_nothing_twice(name: str) -> None:
    mappings = ARCHITECTURES[name].mappings(tied=False)
    assert len({mapping.megatron for mapping in mappings}) == len(mappings)
    names = [hf for mapping in mappings for hf in mapping.hf]
    assert len(set(names)) == len(names)


def test_layer_number_goes_into_the_name() -> None:
    mapping = Mapping("decoder.layers.x", ("model.layers.{layer}.x",))
    assert mapping.in_layers
    assert mapping.hf_names(11) == ["model.layers.11.x"]


def test_joining_in_place_is_joining() -> None:
    join = JoinInPlace()
    for dtype, shapes, dim in (
        (torch.bfloat16, [(3, 5), (4, 5)], 0),
        (torch.float32, [(2, 6, 4), (2, 1, 4), (2, 1, 4)], 1),  # needs more memory
        (torch.bfloat16, [(1, 2), (1, 2)], 0),
    ):
        parts = [torch.randn(shape).to(dtype) for shape in shapes]
        assert torch.equal(join(parts, dim), torch.cat(parts, dim))
    first = join(parts)
    assert join(parts).data_ptr() == first.data_ptr()
