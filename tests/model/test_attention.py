"""The torch core attention against a plain float64 softmax."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_longrope2.model import attention
from megatron_longrope2.model.attention import TorchDotProductAttention

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


def packed(*boundaries: int) -> PackedSeqParams:
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
    longest = int(cu_seqlens.diff().max())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


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


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_call_for_all_segments(
    core: TorchDotProductAttention, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU's variable-length kernel is given, with and without context parallelism."""

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, window_size: Any, **_: Any
    ) -> torch.Tensor:
        cu_q, cu_k, longest_q, longest_k = rest
        assert (longest_q, longest_k, window_size) == (6, 14, (-1, 0))
        return torch.cat(
            [
                reference(q[a:b], k[c:d], v[c:d]).unflatten(-1, (HEADS, DIM))
                for (a, b), (c, d) in zip(
                    itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True
                )
            ]
        )

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    core.cp_group = SimpleNamespace(size=lambda: ranks, rank=lambda: 0)
    ends = torch.tensor([14, 20]) if ranks == 1 else torch.tensor([8, 14])
    starts = torch.tensor([0, 14]) if ranks == 1 else torch.tensor([0, 0])
    boundaries = torch.tensor([0, 6, 12])
    inputs = tensors(12, keys=20)
    segments = boundaries, starts, ends
    torch.testing.assert_close(
        core._varlen(*inputs, *segments),
        core._attend_segments(*inputs, *segments).double(),
        rtol=1e-5,
        atol=1e-6,
    )


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
