"""Configurations as published models have them: sizes, RoPE, and how many parameters the tables make."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longrope2.checkpoint.hf_config import HFConfig, megatron_args
from megatron_longrope2.errors import InputError

LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def published(
    model_type: str, sizes: tuple[int, ...], vocab: int, length: int, **fields: Any
) -> dict[str, Any]:
    """A config.json; `sizes` are hidden, intermediate, layers, heads, key-value heads."""
    hidden, intermediate, layers, heads, groups = sizes
    return {
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
        **fields,
    }


# Name: config.json, parameters.
MODELS = {
    # No rope_theta, no head_dim: older than both fields.
    "Llama-2-7b": (
        published("llama", (4096, 11008, 32, 32, 32), 32000, 4096, rope_scaling=None, pretraining_tp=1),
        6_738_415_616,
    ),
    "Llama-3-8B": (
        published("llama", (4096, 14336, 32, 32, 8), 128256, 8192, rope_theta=500000.0, rope_scaling=None),
        8_030_261_248,
    ),
    "Llama-3.1-8B": (
        published(
            "llama",
            (4096, 14336, 32, 32, 8),
            128256,
            131072,
            rope_theta=500000.0,
            rope_scaling={**LLAMA3_ROPE, "factor": 8.0},
        ),
        8_030_261_248,
    ),
    "Llama-3.2-1B": (
        published(
            "llama",
            (2048, 8192, 16, 32, 8),
            128256,
            131072,
            head_dim=64,
            rope_theta=500000.0,
            rope_scaling={**LLAMA3_ROPE, "factor": 32.0},
            tie_word_embeddings=True,
        ),
        1_235_814_400,
    ),
    "Phi-3-mini-4k": (
        published(
            "phi3",
            (3072, 8192, 32, 32, 32),
            32064,
            4096,
            original_max_position_embeddings=4096,
            rope_theta=10000.0,
            rope_scaling=None,
            sliding_window=2047,
            auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
        ),
        3_821_079_552,
    ),
    "Phi-3-mini-128k": (
        published(
            "phi3",
            (3072, 8192, 32, 32, 32),
            32064,
            131072,
            original_max_position_embeddings=4096,
            rope_theta=10000.0,
            rope_scaling={
                "type": "longrope",
                "short_factor": [1.0 + n / 100 for n in range(48)],
                "long_factor": [1.0 + n for n in range(48)],
            },
            sliding_window=262144,
        ),
        3_821_079_552,
    ),
    "Mistral-7B-v0.3": (
        published(
            "mistral", (4096, 14336, 32, 32, 8), 32768, 32768, rope_theta=1000000.0, sliding_window=None
        ),
        7_248_023_552,
    ),
    "Qwen2.5-7B": (
        published(
            "qwen2",
            (3584, 18944, 28, 28, 4),
            152064,
            131072,
            rope_theta=1000000.0,
            sliding_window=131072,
            use_sliding_window=False,
            max_window_layers=28,
        ),
        7_615_616_512,
    ),
    "Qwen3-8B": (
        published(
            "qwen3",
            (4096, 12288, 36, 32, 8),
            151936,
            40960,
            head_dim=128,
            rope_theta=1000000,
            rope_scaling=None,
            sliding_window=None,
            use_sliding_window=False,
            attention_bias=False,
        ),
        8_190_735_360,
    ),
}


def read(folder: Path, config: dict[str, Any]) -> HFConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return HFConfig.read(folder)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_makes_as_many_parameters_as_the_model_has(name: str, tmp_path: Path) -> None:
    raw, parameters = MODELS[name]
    config = read(tmp_path, raw)
    dims = config.dims()
    hf, megatron = 0, 0
    for mapping in config.mappings():
        layers = dims.num_layers if mapping.in_layers else 1
        hf += layers * sum(torch.Size(shape).numel() for shape in mapping.hf_shapes(dims))
        megatron += layers * torch.Size(mapping.megatron_shape(dims)).numel()
    assert hf == megatron == parameters


@pytest.mark.parametrize(
    ("name", "base", "rotary_dim", "window", "method"),
    [
        ("Llama-2-7b", 10000, 128, None, None),
        ("Llama-3-8B", 500000, 128, None, None),
        ("Llama-3.1-8B", 500000, 128, (8192, 131072), "llama3"),
        ("Llama-3.2-1B", 500000, 64, (8192, 131072), "llama3"),
        ("Phi-3-mini-4k", 10000, 96, None, None),
        ("Phi-3-mini-128k", 10000, 96, (4096, 131072), "longrope"),
        ("Mistral-7B-v0.3", 1000000, 128, None, None),
        ("Qwen2.5-7B", 1000000, 128, None, None),
        ("Qwen3-8B", 1000000, 128, None, None),
    ],
)
def test_the_rope_is_read(
    name: str,
    base: float,
    rotary_dim: int,
    window: tuple[int, int] | None,
    method: str | None,
    tmp_path: Path,
) -> None:
    config = read(tmp_path, MODELS[name][0])
    assert (config.rope.rope_base, config.rope.rotary_dim) == (base, rotary_dim)
    factors = config.rope.factors
    if factors is None:
        assert (window, method) == (None, None)
    else:
        assert ((factors.original_length, factors.target_length), factors.method) == (window, method)


def test_megatron_arguments_of_a_published_model(tmp_path: Path) -> None:
    config = read(tmp_path, MODELS["Qwen3-8B"][0])
    args = megatron_args(
        config,
        config.dims().padded(256),
        factors=None,
        params_dtype=torch.bfloat16,
        tokenizer_folder=tmp_path,
    )
    wanted = {
        "num_layers": 36,
        "ffn_hidden_size": 12288,
        "num_query_groups": 8,
        "group_query_attention": True,
        "kv_channels": 128,
        "qk_layernorm": True,
        "add_qkv_bias": False,
        "layernorm_epsilon": 1e-5,
        "rotary_base": 1000000,
        "rotary_percent": 1.0,
        "vocab_size": 151936,
        "padded_vocab_size": 152064,
        "untie_embeddings_and_output_weights": True,
        "original_length": 40960,
        "longrope2_factors": None,
    }
    assert {name: getattr(args, name) for name in wanted} == wanted


def test_phi3_mini_is_taken_with_the_papers_window_only(tmp_path: Path) -> None:
    config = read(tmp_path, MODELS["Phi-3-mini-4k"][0])
    config.check_window(2048)
    with pytest.raises(InputError, match="sliding_window: 2047 is shorter than the original length 4096"):
        config.check_window(4096)


def test_a_sliding_window_that_is_not_used_does_not_count(tmp_path: Path) -> None:
    read(tmp_path, {**MODELS["Qwen2.5-7B"][0], "sliding_window": 4096}).check_window(131072)
