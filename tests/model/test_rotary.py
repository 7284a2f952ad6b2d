"""Which angles a document gets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_longrope2.hf import WindowRotaryEmbedding
from megatron_longrope2.model.learned_factors import LearnedFactors
from megatron_longrope2.model.pack import DocumentPack
from megatron_longrope2.model.rotary import ActiveFactors, LongRoPE2RotaryEmbedding
from megatron_longrope2.rope import RopeFactors, load_factors, make_factors
from megatron_longrope2.rope.hf import factors_to_hf

ORIGINAL, TARGET, DIM = 16, 64, 8
ONE = SimpleNamespace(size=lambda: 1, rank=lambda: 0)


def factors(**changes: object) -> RopeFactors:
    made = make_factors(
        "ntk", rope_base=10000.0, rotary_dim=DIM, original_length=ORIGINAL, target_length=TARGET
    )
    return RopeFactors.from_dict(made.to_dict() | changes, source="test")


@pytest.fixture
def rotary() -> LongRoPE2RotaryEmbedding:
    return LongRoPE2RotaryEmbedding(factors(), cp_group=ONE)


def expected(length: int, window: str) -> np.ndarray:
    """Cosine of the exact angles, [length, DIM]."""
    angles = np.outer(np.arange(length), factors().inv_freq(window))
    return np.cos(np.concatenate([angles, angles], axis=1))


def of_pack(rotary: LongRoPE2RotaryEmbedding, lengths: tuple[int, ...]) -> DocumentPack:
    """What `GPTModel` hands to the module for a pack."""
    return rotary.get_rotary_seq_len(None, None, None, None, DocumentPack.of(lengths))


@pytest.mark.parametrize(
    ("length", "window"),
    [(1, "short"), (ORIGINAL, "short"), (ORIGINAL + 1, "long"), (TARGET, "long"), (3 * TARGET, "long")],
)
def test_switch_at_the_original_length(rotary: LongRoPE2RotaryEmbedding, length: int, window: str) -> None:
    table = rotary(length)
    assert table.shape == (length, 1, 1, DIM)
    assert table.dtype == torch.float32
    np.testing.assert_allclose(table[:, 0, 0].cos().numpy(), expected(length, window), atol=2e-5)


def test_switches_back_and_forth(rotary: LongRoPE2RotaryEmbedding) -> None:
    """One micro-batch after another, in any order, and a longer table after a shorter one."""
    for length, window in ((8, "short"), (40, "long"), (16, "short"), (64, "long"), (20, "long")):
        table = rotary(length)[:, 0, 0]
        np.testing.assert_allclose(table.cos().numpy(), expected(length, window), atol=2e-5)


def test_other_factors_take_effect_at_once(rotary: LongRoPE2RotaryEmbedding) -> None:
    """Upstream's cache would return the previous candidate's angles."""
    before = rotary(TARGET).clone()
    rotary.set_factors(factors(long_factor=[5.0] * (DIM // 2), method="pi"))
    after = rotary(TARGET)
    assert not torch.equal(before, after)
    np.testing.assert_allclose(after[5, 0, 0, 0].item(), 1.0, rtol=1e-6)
    assert torch.equal(rotary(ORIGINAL), LongRoPE2RotaryEmbedding(factors(), cp_group=ONE)(ORIGINAL))


@pytest.mark.parametrize("length", [8192, 131072])
def test_angles_are_bit_for_bit_those_of_the_export(length: int) -> None:
    """What transformers computes from the exported configuration, in either window."""
    factors = load_factors("llama3-8b-128k")
    config = LlamaConfig(head_dim=128, **factors_to_hf(factors))
    theirs, _ = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    ours = LongRoPE2RotaryEmbedding(factors, cp_group=ONE)(length)
    assert torch.equal(ours[:, 0, 0].cos(), theirs[0])


@pytest.mark.parametrize("length", [8192, 131072])
def test_the_transformers_helper_has_the_trainers_angles(length: int) -> None:
    """To the bit, at the last position and at all before it."""
    factors = load_factors("llama3-8b-128k")
    helper = WindowRotaryEmbedding(factors)(torch.zeros(1), torch.arange(length)[None])
    ours = LongRoPE2RotaryEmbedding(factors, cp_group=ONE)(length)[:, 0, 0]
    assert torch.equal(ours.cos(), helper[0][0])
    assert torch.equal(ours.sin(), helper[1][0])


@pytest.mark.parametrize(
    "lengths", [(3, 16, 8), (17, 64), (3, 40, 16, 17), (ORIGINAL, 2 * ORIGINAL), (48, 16), (8, 8)]
)
def test_each_document_of_a_pack_gets_the_angles_that_it_has_alone(
    rotary: LongRoPE2RotaryEmbedding, lengths: tuple[int, ...]
) -> None:
    angles = rotary(of_pack(rotary, lengths), packed_seq=True)
    for part, length in zip(angles.split(lengths), lengths, strict=True):
        assert torch.equal(part, rotary(length))


def test_a_context_parallel_rank_has_the_angles_of_its_tokens(rotary: LongRoPE2RotaryEmbedding) -> None:
    lengths = (8, 40, 16)
    whole = rotary(of_pack(rotary, lengths), packed_seq=True)
    for rank in range(2):
        pack = DocumentPack.of(lengths, 2, rank)
        assert torch.equal(rotary(pack, packed_seq=True), whole[pack.local_indices])


def test_queries_are_scaled_by_window() -> None:
    active = ActiveFactors(factors(attention_factor={"short": 1.0, "long": 1.5}))
    for lengths, expected_scale in (((ORIGINAL, 3), 1.0), ((ORIGINAL + 1,), 2.25), ((17, 40), 2.25)):
        assert active.query_scale(DocumentPack.of(lengths)) == expected_scale
        assert active.query_scale(max(lengths)) == expected_scale
    per_token = active.query_scale(DocumentPack.of((2, 20)))
    assert isinstance(per_token, torch.Tensor)
    assert per_token.shape == (22, 1, 1, 1)
    assert per_token.flatten().tolist() == [1.0] * 2 + [2.25] * 20


def test_one_attention_factor_stays_a_number() -> None:
    assert ActiveFactors(factors()).query_scale(DocumentPack.of((2, 20))) == 1.0


def test_neither_layers_nor_learned_factors_become_part_of_the_model(
    rotary: LongRoPE2RotaryEmbedding,
) -> None:
    rotary.learn(LearnedFactors(factors()))
    layer = torch.nn.Module()
    layer.active = rotary.active
    assert not list(rotary.parameters())
    assert not list(layer.modules())[1:]
