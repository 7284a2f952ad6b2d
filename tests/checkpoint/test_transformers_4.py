"""An export means the same in transformers 4 and 5, and a reader that ignores the factors is caught."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_longrope2.checkpoint.export_hf import export_hf
from megatron_longrope2.checkpoint.import_hf import import_hf
from megatron_longrope2.errors import InputError
from tests.checkpoint.test_round_trip import longrope2_factors
from tests.checkpoint.tiny_models import ORIGINAL, TARGET, save_model

LENGTHS = [ORIGINAL, ORIGINAL + 1, TARGET]
PACKAGES = ["transformers==4.57.6", "huggingface_hub>=0.34,<1.0", "tokenizers>=0.22,<0.23.1"]


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4 to put in front of the installed packages."""
    folder = tmp_path_factory.mktemp("transformers_4")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"transformers 4 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


def logits(folder: Path, packages: Path | None = None) -> dict[int, torch.Tensor]:
    """Logits by length, from the installed transformers or from the one in `packages`."""
    output = folder.parent / f"{folder.name}.pt"
    script = Path(__file__).with_name("hf_logits.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(packages)} if packages else {}
    command = [sys.executable, str(script), str(folder), str(output), json.dumps(LENGTHS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(output)
    assert found["version"].startswith("4." if packages else "5.")
    return found["logits"]


def largest(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor], length: int) -> float:
    return float((one[length] - other[length]).abs().max())


def exported(folder: Path, variant: str, *, as_llama: bool = False) -> Path:
    hf = save_model(folder / "hf", variant)
    longrope2_factors(folder, 32 if variant in ("mistral", "qwen3") else 16)
    import_hf(hf, folder / "megatron", rope_factors=folder / "factors.json")
    export_hf(folder / "megatron", folder / "back", as_llama=as_llama)
    return folder / "back"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_both_versions_compute_the_same(variant: str, transformers_4: Path, tmp_path: Path) -> None:
    back = exported(tmp_path, variant, as_llama=variant == "phi3")
    new, old = logits(back), logits(back, transformers_4)
    assert max(largest(new, old, length) for length in LENGTHS) < 1e-4


@pytest.mark.slow
def test_a_reader_that_ignores_the_factors_is_caught(transformers_4: Path, tmp_path: Path) -> None:
    back = exported(tmp_path, "llama")
    # What transformers 5 alone would have saved: transformers 4 takes it for plain RoPE without a word.
    deaf = Path(shutil.copytree(back, tmp_path / "deaf"))
    config = json.loads((deaf / "config.json").read_text())
    del config["rope_scaling"]
    (deaf / "config.json").write_text(json.dumps(config))
    new, old = logits(deaf), logits(deaf, transformers_4)
    assert largest(new, old, ORIGINAL) < 1e-4
    assert largest(new, old, TARGET) > 1e-2


def test_phi3_as_llama_computes_the_same(tmp_path: Path) -> None:
    back = exported(tmp_path / "llama", "phi3", as_llama=True)
    own = exported(tmp_path / "phi3", "phi3")
    config = json.loads((back / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    one, other = logits(back), logits(own)
    assert max(largest(one, other, length) for length in LENGTHS) < 1e-4


@pytest.mark.parametrize(
    ("variant", "match"),
    [("qwen2", "qwen2 has tensors that llama has not"), ("phi3_partial", "llama rotates whole heads only")],
)
def test_what_llama_cannot_hold(variant: str, match: str, tmp_path: Path) -> None:
    import_hf(save_model(tmp_path / "hf", variant), tmp_path / "megatron")
    with pytest.raises(InputError, match=match):
        export_hf(tmp_path / "megatron", tmp_path / "back", as_llama=True)
