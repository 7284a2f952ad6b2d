"""Hugging Face -> Megatron -> Hugging Face gives every tensor back, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_longrope2.checkpoint.conversion import export_hf, import_hf
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
from megatron_longrope2.rope import RopeFactors, make_factors
from tests.checkpoint.tiny_models import ORIGINAL, TARGET, VARIANTS, rope_changes, save_model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder, read by the safetensors library."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def assert_same_weights(one: Path, other: Path) -> None:
    """Same names, dtypes and bits."""
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), right[name].view(torch.uint8)), name


def longrope2_factors(folder: Path, rotary_dim: int = 16) -> RopeFactors:
    factors = make_factors(
        "ntk", rope_base=10000.0, rotary_dim=rotary_dim, original_length=ORIGINAL, target_length=TARGET
    )
    factors.save(folder / "factors.json")
    return factors


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_tensor_comes_back(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", variant, dtype=dtype)
    import_hf(ImportSettings(hf, tmp_path / "megatron"))
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back"))
    assert_same_weights(hf, tmp_path / "back")


@pytest.mark.parametrize("variant", ["llama", "phi3", "qwen2_tied"])
def test_many_shards_in_and_out(variant: str, tmp_path: Path) -> None:
    hf = save_model(tmp_path / "one", variant)
    model = AutoModelForCausalLM.from_pretrained(hf)
    model.save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    import_hf(ImportSettings(tmp_path / "hf", tmp_path / "megatron"))
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back", max_shard_size=150e-6))
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    assert_same_weights(tmp_path / "hf", tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens).logits, back(tokens).logits)


def test_dtype_option_converts(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    import_hf(ImportSettings(hf, tmp_path / "megatron", dtype="bfloat16"))
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back"))
    wanted = weights(hf)
    for name, tensor in weights(tmp_path / "back").items():
        assert torch.equal(tensor, wanted[name].to(torch.bfloat16)), name
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "wide", dtype="float32"))
    assert {tensor.dtype for tensor in weights(tmp_path / "wide").values()} == {torch.float32}


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn", "longrope"])
def test_a_rope_that_nobody_changed_stays_as_it_was_written(rope: str, tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", **rope_changes(rope))
    import_hf(ImportSettings(hf, tmp_path / "megatron"))
    args = MegatronTensors(tmp_path / "megatron").args
    assert args.longrope2_factors["target_length"] == TARGET
    assert args.original_length == ORIGINAL
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back"))
    before, after = AutoConfig.from_pretrained(hf), AutoConfig.from_pretrained(tmp_path / "back")
    assert before.rope_parameters == after.rope_parameters


@pytest.mark.parametrize("variant", ["llama", "mistral", "phi3", "phi3_partial", "qwen2", "qwen3"])
def test_exported_model_rotates_by_our_angles(variant: str, tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", variant)
    rotary_dim = {"mistral": 32, "qwen3": 32, "phi3_partial": 12}.get(variant, 16)
    factors = longrope2_factors(tmp_path, rotary_dim)
    import_hf(ImportSettings(hf, tmp_path / "megatron", rope_factors=tmp_path / "factors.json"))
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back"))
    rotary = AutoModelForCausalLM.from_pretrained(tmp_path / "back").model.rotary_emb
    hidden = torch.zeros(1, 1, 1)
    for length, window in ((ORIGINAL, "short"), (ORIGINAL + 1, "long"), (TARGET, "long")):
        cos, sin = rotary(hidden, torch.arange(length)[None])
        angles = torch.outer(
            torch.arange(length, dtype=torch.float32), torch.from_numpy(factors.inv_freq(window)).float()
        )
        assert torch.allclose(cos[0, :, : rotary_dim // 2], angles.cos(), atol=2e-5)
        assert torch.allclose(sin[0, :, : rotary_dim // 2], angles.sin(), atol=2e-5)
        assert torch.allclose(rotary.inv_freq, angles[1], rtol=1e-6)


def test_factors_given_at_export_win(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    import_hf(ImportSettings(hf, tmp_path / "megatron"))
    factors = longrope2_factors(tmp_path)
    export_hf(
        ExportSettings(tmp_path / "megatron", tmp_path / "back", rope_factors=tmp_path / "factors.json")
    )
    rope = json.loads((tmp_path / "back/config.json").read_text())["rope_parameters"]
    assert rope["long_factor"] == list(factors.long_factor)
    assert rope["original_max_position_embeddings"] == ORIGINAL


def test_un_rescaled_model_keeps_its_config(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf")
    import_hf(ImportSettings(hf, tmp_path / "megatron"))
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back"))
    before = json.loads((hf / "config.json").read_text())
    after = json.loads((tmp_path / "back/config.json").read_text())
    assert after == before | {"torch_dtype": "float32"}
