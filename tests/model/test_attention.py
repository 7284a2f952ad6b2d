"""The torch core attention against a plain float64 softmax."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_longrope2.model import attention
from megatron_longrope2.model.attention import TorchDotProductAttention
from megatron_longrope2.model.pack import DocumentPack

HEADS, GROUPS, DIM = 4, 2, 16


@pytest.fixture
def core() -> TorchDotProductAttention:
    return make_core(HEADS, GROUPS, DIM)


def make_core(heads: int, groups: int, dim: int) -> TorchDotProductAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=heads * dim,
        num_attention_heads=heads,
        num_query_groups=groups,
        attention_dropout=0.0,
    )
    one = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    return TorchDotProductAttention(
        config, 1, AttnMaskType.causal, "self", pg_collection=SimpleNamespace(cp=one)
    )


def tensors(tokens: int, keys: int | None = None, batch: int | None = None) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(tokens)
    shape = () if batch is None else (batch,)
    query = torch.randn(tokens, *shape, HEADS, DIM, requires_grad=True)
    key = torch.randn(keys or tokens, *shape, GROUPS, DIM, requires_grad=True)
    value = torch.randn(keys or tokens, *shape, GROUPS, DIM, requires_grad=True)
    return query, key, value


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[queries, heads, dim]; the last query is at the last key."""
    q, k, v = (x.double().transpose(0, 1) for x in (query, key, value))
    k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    seen = torch.ones(scores.shape[-2:]).tril(scores.shape[-1] - scores.shape[-2]).bool()
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(-2)


def packed(*boundaries: int) -> DocumentPack:
    return DocumentPack.of(tuple(end - start for start, end in itertools.pairwise(boundaries)))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    """Outputs and gradients, to float32 rounding."""
    weights = torch.randn_like(actual)
    gradients = torch.autograd.grad((actual * weights).sum(), inputs, retain_graph=True)
    expected_gradients = torch.autograd.grad((expected * weights.double()).sum(), inputs)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=2e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=2e-5)


def test_batch_rows_are_documents(core: TorchDotProductAttention) -> None:
    inputs = tensors(24, batch=3)
    expected = torch.stack([reference(*(x[:, row] for x in inputs)) for row in range(3)], dim=1)
    assert_close(core(*inputs, None), expected, inputs)


def test_packed_documents_do_not_see_each_other(core: TorchDotProductAttention) -> None:
    inputs = tensors(40)
    boundaries = [0, 7, 7, 23, 40]  # an empty document is no document
    expected = torch.cat(
        [
            reference(*(x[start:end] for x in inputs))
            for start, end in itertools.pairwise(boundaries)
            if end > start
        ]
    )
    assert_close(core(*inputs, None, packed_seq_params=packed(*boundaries)), expected, inputs)


@pytest.mark.parametrize("queries", [1, 5, 24])
@pytest.mark.parametrize("block", [4, 512])
def test_cached_keys(
    core: TorchDotProductAttention, queries: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a KV cache the queries are the last of the keys, in blocks of any size."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    inputs = tensors(queries, keys=24, batch=1)
    expected = reference(*(x[:, 0] for x in inputs)).unsqueeze(1)
    assert_close(core(*inputs, None), expected, inputs)


@pytest.mark.parametrize("queries", [5, 24])
def test_repeated_heads_change_nothing(
    core: TorchDotProductAttention, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What GPU kernels without grouped queries are given."""
    monkeypatch.setattr(attention, "_repeats_heads", lambda *_, **__: True)
    inputs = tensors(queries, keys=24, batch=1)
    expected = reference(*(x[:, 0] for x in inputs)).unsqueeze(1)
    assert_close(core(*inputs, None), expected, inputs)


def varlen_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, window_size: Any, **_: Any
) -> torch.Tensor:
    """A GPU's variable-length kernel."""
    cu_q, cu_k, longest_q, longest_k = rest
    assert (longest_q, longest_k, window_size) == (cu_q.diff().max(), cu_k.diff().max(), (-1, 0))
    return torch.cat(
        [
            reference(q[a:b], k[c:d], v[c:d]).unflatten(-1, (HEADS, DIM))
            for (a, b), (c, d) in zip(
                itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True
            )
        ]
    )


def test_a_chunk_of_prompts_takes_one_call(
    core: TorchDotProductAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose queries are the last of their tokens, as a GPU gets them."""
    query, key, value = tensors(6, keys=10, batch=3)
    expected = torch.stack([reference(*(x[:, row] for x in (query, key, value))) for row in range(3)], dim=1)
    monkeypatch.setattr(attention, "varlen_attn", varlen_kernel)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda _: True)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", None)
    torch.testing.assert_close(core(query, key, value, None).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("cp_size", "cp_rank"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("one_call", [False, True])
def test_segments_of_a_rank(
    core: TorchDotProductAttention,
    one_call: bool,
    cp_size: int,
    cp_rank: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Document by document, and as a GPU's variable-length kernel gets them, in one call."""
    lengths = (8, 12)
    pack = DocumentPack.of(lengths, cp_size, cp_rank)
    query, key, value = tensors(sum(lengths))
    documents = zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
    expected = torch.cat([reference(*document) for document in documents])
    held = [DocumentPack.of(lengths, cp_size, rank).local_indices for rank in range(cp_size)]

    def gather(own: torch.Tensor, **_: Any) -> torch.Tensor:
        whole = key if own.equal(key[pack.local_indices]) else value
        return torch.cat([whole[shard] for shard in held])

    monkeypatch.setattr(attention, "varlen_attn", varlen_kernel)
    monkeypatch.setattr(attention, "gather_from_sequence_parallel_region", gather)
    if one_call:
        monkeypatch.setattr(attention, "has_varlen_kernel", lambda _: True)
    own = slice(None) if cp_size == 1 else pack.local_indices
    actual = core(query[own], key[own], value[own], None, packed_seq_params=pack)
    torch.testing.assert_close(actual.double(), expected[own], rtol=1e-5, atol=1e-6)


def test_no_mask_of_tokens_squared(core: TorchDotProductAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a whole document nor a cached prefix is attended through a tokens x tokens mask."""
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: torch.Tensor, attn_mask: torch.Tensor | None = None, **kwargs: object) -> torch.Tensor:
        seen.append(0 if attn_mask is None else attn_mask.numel())
        return original(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        core(*tensors(2048), None, packed_seq_params=packed(0, 2048))
        core(*tensors(1024, keys=2048, batch=1), None)
    assert seen[0] == 0
    assert max(seen) <= attention.QUERY_BLOCK * 2048


def test_refuses_what_it_cannot_do(core: TorchDotProductAttention) -> None:
    with pytest.raises(ValueError, match="attention bias is not supported"):
        core(*tensors(4, batch=1), None, attention_bias=torch.zeros(1))
    with pytest.raises(ValueError, match="self-attention only, not 'cross'"):
        TorchDotProductAttention(core.config, 1, AttnMaskType.causal, "cross")
