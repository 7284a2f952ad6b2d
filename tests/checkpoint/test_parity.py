"""The Megatron model of a converted checkpoint computes what transformers computes."""

import json
from pathlib import Path

import pytest

from megatron_longrope2.checkpoint.conversion import export_hf, import_hf
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
from tests.checkpoint.test_round_trip import assert_same_weights, longrope2_factors
from tests.checkpoint.tiny_models import ORIGINAL, TARGET, VARIANTS, rope_changes, save_model
from tests.processes import torchrun

HERE = Path(__file__).parent
TOLERANCE = 1e-4
LENGTHS = [ORIGINAL - 7, ORIGINAL, ORIGINAL + 1, TARGET]


def differences(pairs: dict[str, tuple[Path, Path]], lengths: list[int] = LENGTHS) -> dict[str, float]:
    """Largest logit difference of each pair (Megatron folder, Hugging Face folder) over all lengths."""
    request = {"pairs": [[str(path) for path in pair] for pair in pairs.values()], "lengths": lengths}
    output = torchrun(1, HERE / "compare_logits.py", json.dumps(request))
    answer = json.loads(output.split("ANSWER")[-1].splitlines()[0])
    return {name: max(worst.values()) for name, worst in zip(pairs, answer, strict=True)}


@pytest.mark.slow
def test_every_architecture_and_every_rope_type(tmp_path: Path) -> None:
    pairs = {}
    for variant in VARIANTS:
        folder = tmp_path / variant
        hf = save_model(folder / "hf", variant)
        rotary_dim = {"llama_biased": 24, "mistral": 32, "qwen3": 32, "phi3_partial": 12}.get(variant, 16)
        longrope2_factors(folder, rotary_dim)
        import_hf(ImportSettings(hf, folder / "megatron", rope_factors=folder / "factors.json"))
        export_hf(ExportSettings(folder / "megatron", folder / "back"))
        pairs[f"{variant}, longrope2"] = (folder / "megatron", folder / "back")
    for variant, rope in [
        ("llama", "default"),
        ("llama", "linear"),
        ("llama", "llama3"),
        ("llama", "yarn"),
        ("llama", "longrope"),
        ("phi3", "longrope"),
        ("qwen2", "yarn"),
    ]:
        folder = tmp_path / f"{variant}_{rope}"
        hf = save_model(folder / "hf", variant, **({} if rope == "default" else rope_changes(rope)))
        import_hf(ImportSettings(hf, folder / "megatron"))
        pairs[f"{variant}, {rope}"] = (folder / "megatron", hf)
    found = differences(pairs)
    print(found)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.slow
def test_through_tensor_and_pipeline_parallel(tmp_path: Path) -> None:
    folders = {}
    for variant in ("llama_tied_mha", "llama", "phi3", "qwen2", "qwen3"):
        folders[variant] = folder = tmp_path / variant
        hf = save_model(folder / "hf", variant, num_hidden_layers=4)
        import_hf(ImportSettings(hf, folder / "megatron"))
    pairs = [[str(folder / "megatron"), str(folder / "again")] for folder in folders.values()]
    torchrun(4, HERE / "load_and_save.py", json.dumps(pairs))
    for folder in folders.values():
        export_hf(ExportSettings(folder / "again", folder / "back"))
        assert_same_weights(folder / "hf", folder / "back")
