"""transformers' own generation is wrong across the boundary, ours equals recomputation without a cache."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from megatron_longrope2.errors import InputError
from megatron_longrope2.hf import load, set_factors
from megatron_longrope2.rope import AttentionFactor, RopeFactors, make_factors
from megatron_longrope2.rope.hf import factors_to_hf

ORIGINAL, TARGET, NEW = 64, 256, 12
LENGTHS = (20, 58, 64, 65, 100)
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
}


def ntk() -> RopeFactors:
    return make_factors(
        "ntk", rope_base=10000.0, rotary_dim=16, original_length=ORIGINAL, target_length=TARGET
    )


def write(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    config_class, model_class = MODELS[name]
    config = config_class(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        sliding_window=None,
        **factors_to_hf(ntk()),
    )
    model_class(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("llama"), "llama")


def prompt(length: int) -> torch.Tensor:
    return torch.randint(3, 300, (1, length), generator=torch.Generator().manual_seed(length))


def generated(
    model: PreTrainedModel, inputs: torch.Tensor, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens [rows, NEW] and their logits [rows, NEW, vocabulary]."""
    result = model.generate(
        inputs,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return result.sequences[:, inputs.shape[1] :], torch.stack(result.logits, dim=1)


@torch.no_grad()
def recomputed(model: PreTrainedModel, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference: plain transformers, no cache, one prompt; as `generate`, never the stop token."""
    start, kept = inputs.shape[1], []
    for _ in range(NEW):
        kept.append(model(inputs, use_cache=False).logits[:, -1])
        scores = kept[-1].clone()
        scores[:, 2] = -torch.inf
        inputs = torch.cat([inputs, scores.argmax(-1, keepdim=True)], dim=1)
    return inputs[:, start:], torch.stack(kept, dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_generation_equals_recomputation(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / name, name)
    plain, ours = AutoModelForCausalLM.from_pretrained(folder), load(folder)
    for length in LENGTHS:
        tokens, logits = generated(ours, prompt(length))
        wanted, wanted_logits = recomputed(plain, prompt(length))
        assert tokens.tolist() == wanted.tolist()
        torch.testing.assert_close(logits, wanted_logits, rtol=0, atol=1e-4)


def test_plain_llama_is_wrong_where_ours_is_right(llama: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(llama)
    _, wanted = recomputed(plain, prompt(58))
    difference = (generated(plain, prompt(58))[1] - wanted).abs().amax((0, 2))
    assert difference[:7].max() < 1e-4
    assert difference[7:].max() > 0.1


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static", "disable_compile": True}])
def test_each_row_of_a_padded_batch_has_its_own_window(llama: Path, options: dict[str, object]) -> None:
    plain, ours = AutoModelForCausalLM.from_pretrained(llama), load(llama)
    width = max(LENGTHS)
    rows = [torch.cat([torch.zeros(1, width - n, dtype=torch.int64), prompt(n)], dim=1) for n in LENGTHS]
    inputs = torch.cat(rows)
    mask = torch.stack([torch.arange(width) >= width - n for n in LENGTHS]).long()
    tokens, logits = generated(ours, inputs, attention_mask=mask, **options)
    for row, length in enumerate(LENGTHS):
        wanted, wanted_logits = recomputed(plain, prompt(length))
        assert tokens[row].tolist() == wanted[0].tolist()
        torch.testing.assert_close(logits[row], wanted_logits[0], rtol=0, atol=2e-4)


def test_beams_cross_too(llama: Path) -> None:
    ours = load(llama)
    with_cache, without = (
        ours.generate(prompt(58), max_new_tokens=NEW, num_beams=3, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


def test_a_stale_cache_is_refused(llama: Path) -> None:
    ours = load(llama)
    cache = ours(prompt(60)).past_key_values
    with pytest.raises(InputError, match="crosses the original length of 64 tokens with a cache"):
        ours(prompt(10), past_key_values=cache)


def test_beyond_the_target_is_refused(llama: Path) -> None:
    with pytest.raises(InputError, match="257 tokens are longer than the target length of 256"):
        load(llama)(prompt(257))
    with pytest.raises(InputError, match="longer than the target length"):
        load(llama).generate(prompt(250), max_new_tokens=NEW, min_new_tokens=NEW)


def test_other_factors_can_be_given_and_changed(llama: Path) -> None:
    shape = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": ORIGINAL, "target_length": TARGET}
    pi = make_factors("pi", **shape)
    with torch.no_grad():
        short, long = prompt(60), prompt(100)
        ours = load(llama)
        before = ours(short).logits, ours(long).logits
        set_factors(ours, pi)
        after = ours(short).logits, ours(long).logits
        assert torch.equal(before[0], after[0])
        assert (before[1] - after[1]).abs().max() > 0.1
        assert torch.equal(load(llama, pi)(long).logits, after[1])
        set_factors(ours, replace(pi, attention_factor=AttentionFactor(1.0, 1.2)))
        assert torch.equal(ours(short).logits, after[0])
        assert (ours(long).logits - after[1]).abs().max() > 0.01


def test_saved_again_it_is_the_model_it_was(llama: Path, tmp_path: Path) -> None:
    load(llama).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "again")(prompt(100)).logits, load(llama)(prompt(100)).logits)


def test_factors_of_another_model_are_refused(llama: Path) -> None:
    other = make_factors("pi", rope_base=10000.0, rotary_dim=32, original_length=64, target_length=256)
    with pytest.raises(InputError, match="rotary_dim: 32 is not the model's 16"):
        load(llama, other)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load(tmp_path / "nowhere")
