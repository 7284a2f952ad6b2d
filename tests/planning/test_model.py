"""Sizes of a model, whatever form it is in."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from megatron_longrope2.checkpoint import megatron_files
from megatron_longrope2.errors import InputError
from megatron_longrope2.planning.settings import PRESETS, load_dims


@pytest.mark.parametrize(
    ("name", "billions"), [("llama3-8b", 8.030), ("llama3-70b", 70.554), ("phi3-mini", 3.821)]
)
def test_presets_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    assert load_dims(name).parameters / 1e9 == pytest.approx(billions, abs=5e-4)


def test_padding_of_the_vocabulary() -> None:
    assert PRESETS["phi3-mini"].padded(128).padded_vocab_size == 32128
    assert PRESETS["llama3-8b"].padded(4 * 128).padded_vocab_size == 128512


def test_hugging_face_folder(tmp_path: Path) -> None:
    LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    shape = load_dims(str(tmp_path))
    assert (shape.num_layers, shape.hidden_size, shape.ffn_hidden_size) == (2, 64, 96)
    assert (shape.num_attention_heads, shape.num_query_groups, shape.kv_channels) == (4, 2, 16)
    assert (shape.vocab_size, shape.original_length, shape.tied) == (1000, 256, True)


def test_megatron_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = Namespace(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        num_attention_heads=4,
        group_query_attention=False,
        num_query_groups=1,  # Megatron's default, of no meaning without grouped queries
        kv_channels=16,
        vocab_size=1000,
        padded_vocab_size=1024,
        original_length=256,
        untie_embeddings_and_output_weights=True,
        params_dtype=torch.bfloat16,
    )
    monkeypatch.setattr(megatron_files, "MegatronTensors", lambda _: Namespace(args=args))
    shape = load_dims(str(tmp_path))
    assert (shape.num_query_groups, shape.vocab_size, shape.original_length) == (4, 1000, 256)
    assert not shape.tied


def test_unknown_model() -> None:
    with pytest.raises(InputError, match="llama9: neither a folder nor a known model; known are llama3-8b"):
        load_dims("llama9")
