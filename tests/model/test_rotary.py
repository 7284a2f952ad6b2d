"""Which angles a document gets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

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


def seq_len(rotary: LongRoPE2RotaryEmbedding, *lengths: int) -> int | tuple[int, ...]:
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


def test_one_window_in_a_pack_needs_no_table_a_token(rotary: LongRoPE2RotaryEmbedding) -> None:
    for lengths in ((3, 16, 8), (17, 64), (40,)):
        assert seq_len(rotary, *lengths) == max(lengths)


@pytest.mark.parametrize("lengths", [(3, 40, 16, 17), (ORIGINAL, 2 * ORIGINAL), (48, 16)])
def test_each_document_of_a_mixed_pack_gets_its_own_angles(
    rotary: LongRoPE2RotaryEmbedding, lengths: tuple[int, ...]
) -> None:
    """Rotated through upstream's packed path, document by document the same as alone."""
    states = torch.randn(sum(lengths), 2, DIM)
    config = SimpleNamespace(
        apply_rope_fusion=False, rotary_interleaved=False, multi_latent_attention=False, mrope_section=None
    )
    table = rotary(seq_len(rotary, *lengths), packed_seq=True)
    packed = apply_rotary_pos_emb(
        states, table, config, cu_seqlens=DocumentPack.of(lengths).cu_seqlens_q, cp_group=ONE
    )
    start = 0
    for length in lengths:
        alone = apply_rotary_pos_emb(
            states[start : start + length, None], rotary(length), config, cp_group=ONE
        )
        torch.testing.assert_close(packed[start : start + length], alone[:, 0], rtol=0, atol=0)
        start += length


def test_table_as_long_as_the_pack_is_not_misread(rotary: LongRoPE2RotaryEmbedding) -> None:
    """Upstream takes a table with as many rows as the pack has tokens for the pack's: never return one."""
    seq_len_of_pack = seq_len(rotary, 8, 8)
    assert sum((8, 8)) == ORIGINAL
    assert len(rotary(seq_len_of_pack, packed_seq=True)) == 8


def test_attention_factor_by_window() -> None:
    active = ActiveFactors(factors(attention_factor={"short": 1.0, "long": 1.25}))
    assert active.attention_factor((ORIGINAL, 3)) == 1.0
    assert active.attention_factor((ORIGINAL + 1,)) == 1.25
    per_token = active.attention_factor((2, 20))
    assert isinstance(per_token, torch.Tensor)
    assert per_token.flatten().tolist() == [1.0] * 2 + [1.25] * 20


def test_one_attention_factor_stays_a_number() -> None:
    assert ActiveFactors(factors()).attention_factor((2, 20)) == 1.0


def test_neither_layers_nor_learned_factors_become_part_of_the_model(
    rotary: LongRoPE2RotaryEmbedding,
) -> None:
    rotary.learn(LearnedFactors(factors()))
    layer = torch.nn.Module()
    layer.active = rotary.active
    assert not list(rotary.parameters())
    assert not list(layer.modules())[1:]
