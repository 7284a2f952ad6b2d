"""An export means the same in transformers 4 and 5, and a reader that ignores the factors is caught."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_longrope2.checkpoint.conversion import export_hf, import_hf
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
from megatron_longrope2.errors import InputError
from tests.checkpoint.test_round_trip import longrope2_factors
from tests.checkpoint.tiny_models import ORIGINAL, TARGET, save_model

Logits = dict[int, torch.Tensor]
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


def logits(folders: list[Path], output: Path, packages: Path | None = None) -> list[Logits]:
    """Logits by length of each model, from the installed transformers or from the one in `packages`."""
    script = Path(__file__).with_name("hf_logits.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(packages)} if packages else {}
    command = [sys.executable, str(script), str(output), json.dumps(LENGTHS), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(output)
    assert found["version"].startswith("4." if packages else "5.")
    return [found["logits"][str(folder)] for folder in folders]


def largest(one: Logits, other: Logits, length: int) -> float:
    return float((one[length] - other[length]).abs().max())


def exported(folder: Path, variant: str, *, as_llama: bool = False) -> Path:
    hf = save_model(folder / "hf", variant)
    longrope2_factors(folder, 32 if variant in ("mistral", "qwen3") else 16)
    import_hf(ImportSettings(hf, folder / "megatron", rope_factors=folder / "factors.json"))
    export_hf(ExportSettings(folder / "megatron", folder / "back", as_llama=as_llama))
    return folder / "back"


def deaf_to_transformers_4(folder: Path) -> Path:
    """What transformers 5 alone would have saved: transformers 4 takes it for plain RoPE without a word."""
    deaf = Path(shutil.copytree(folder, folder.with_name("deaf")))
    config = json.loads((deaf / "config.json").read_text())
    del config["rope_scaling"]
    (deaf / "config.json").write_text(json.dumps(config))
    return deaf


@pytest.mark.slow
def test_both_versions_compute_the_same(transformers_4: Path, tmp_path: Path) -> None:
    names = ["llama", "mistral", "qwen2", "qwen3", "phi3"]
    folders = [exported(tmp_path / name, name, as_llama=name == "phi3") for name in names]
    folders.append(deaf_to_transformers_4(folders[0]))
    new = logits(folders, tmp_path / "new.pt")
    old = logits(folders, tmp_path / "old.pt", transformers_4)
    for name, one, other in zip(names, new[:-1], old[:-1], strict=True):
        assert max(largest(one, other, length) for length in LENGTHS) < 1e-4, name
    # A reader that ignores the factors is caught.
    assert largest(new[-1], old[-1], ORIGINAL) < 1e-4
    assert largest(new[-1], old[-1], TARGET) > 1e-2


def test_phi3_as_llama_computes_the_same(tmp_path: Path) -> None:
    back = exported(tmp_path / "llama", "phi3", as_llama=True)
    own = exported(tmp_path / "phi3", "phi3")
    config = json.loads((back / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    one, other = logits([back, own], tmp_path / "logits.pt")
    assert max(largest(one, other, length) for length in LENGTHS) < 1e-4


@pytest.mark.parametrize(
    ("variant", "match"),
    [("qwen2", "qwen2 has tensors that llama has not"), ("phi3_partial", "llama rotates whole heads only")],
)
def test_what_llama_cannot_hold(variant: str, match: str, tmp_path: Path) -> None:
    import_hf(ImportSettings(save_model(tmp_path / "hf", variant), tmp_path / "megatron"))
    with pytest.raises(InputError, match=match):
        export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back", as_llama=True))
