"""Tiny random Hugging Face models of every architecture, with a tokenizer, for the converter tests."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ORIGINAL, TARGET = 64, 256
VOCAB = 515  # odd, and far from a multiple of 128

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": ORIGINAL,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "rms_norm_eps": 1e-6,
}

# What sets each apart: grouped or plain heads, tied or not, head width, biases, partial rotary.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama_tied_mha": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "llama_biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 32},
    "phi3": {"model_type": "phi3"},
    "phi3_partial": {"model_type": "phi3", "num_key_value_heads": 4, "partial_rotary_factor": 0.75},
    "qwen2": {"model_type": "qwen2"},
    "qwen2_tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3_tied": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
}

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 7 + [1.5],
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 4.5, 5.0, 5.5],
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}


def save_model(
    folder: Path, variant: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Path:
    """Write a random model of a variant to `folder`; `changes` go into its configuration."""
    settings = {**_SIZES, **VARIANTS[variant], **changes}
    partial = settings.pop("partial_rotary_factor", None)
    if partial is not None:
        settings["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": partial,
        }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms of 1 and biases of 0, as made, would hide a mapping that mixes them up.
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape) + ("norm" in name) * 0.5)
            else:
                parameter.mul_(3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of one word a token that states the original length."""
    words = Tokenizer(WordLevel({f"t{n}": n for n in range(VOCAB)}, unk_token="t0"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t1", eos_token="t2", model_max_length=ORIGINAL
    ).save_pretrained(folder)


def rope_changes(rope: str) -> dict[str, Any]:
    """Configuration of a model that is already rescaled to the target length."""
    return {
        "rope_parameters": {"rope_theta": 10000.0, **ROPES[rope]},
        "max_position_embeddings": TARGET,
        "original_max_position_embeddings": ORIGINAL,
    }
