"""The exported config is what longrope of vLLM (model_executor.layers.rotary_embedding) reads, key by key.

vLLM itself needs a GPU build; what it computes from which key is written out here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_longrope2.checkpoint.conversion import export_hf, import_hf
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
from tests.checkpoint.test_round_trip import longrope2_factors
from tests.checkpoint.tiny_models import ORIGINAL, TARGET, save_model


def vllm_rotation(config: dict[str, Any], max_model_len: int) -> tuple[np.ndarray, float]:
    """Angles per token and magnitude that vLLM would rotate with: one choice for the engine's whole life."""
    rope = config["rope_parameters"]
    assert rope["rope_type"] == "longrope"
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotary_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    long = max_model_len > rope["original_max_position_embeddings"]
    factor = np.array(rope["long_factor" if long else "short_factor"])
    base = rope["rope_theta"] ** (np.arange(0, rotary_dim, 2) / rotary_dim)
    return 1 / (factor * base), rope["long_mscale" if long else "short_mscale"]


@pytest.mark.parametrize(("variant", "rotary_dim"), [("llama", 16), ("phi3_partial", 12), ("qwen3", 32)])
def test_vllm_rotates_by_our_angles(variant: str, rotary_dim: int, tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", variant)
    factors = longrope2_factors(tmp_path, rotary_dim)
    import_hf(ImportSettings(hf, tmp_path / "megatron", rope_factors=tmp_path / "factors.json"))
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back"))
    config = json.loads((tmp_path / "back/config.json").read_text())
    for length, window in ((ORIGINAL, "short"), (ORIGINAL + 1, "long")):
        inv_freq, magnitude = vllm_rotation(config, length)
        np.testing.assert_allclose(inv_freq, factors.inv_freq(window), rtol=1e-12)
        assert magnitude == 1.0
    # How far vLLM lets a user set --max-model-len, and what caps it.
    assert config["max_position_embeddings"] == TARGET
    assert config["original_max_position_embeddings"] == ORIGINAL
    tokenizer = json.loads((tmp_path / "back/tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == TARGET
