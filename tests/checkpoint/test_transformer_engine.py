"""A converted checkpoint is what a model on the Transformer Engine spec asks for (built on a CPU only)."""

import importlib.util
import json
from pathlib import Path

import pytest

from megatron_longrope2.checkpoint.conversion import import_hf
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.checkpoint.settings import ImportSettings
from tests.checkpoint.test_parity import HERE
from tests.checkpoint.tiny_models import save_model
from tests.processes import torchrun

pytestmark = [
    pytest.mark.te,
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None,
        reason="Transformer Engine is not installed: names and shapes are not compared with its spec",
    ),
]


@pytest.mark.parametrize("variant", ["llama", "llama_tied_mha", "llama_biased", "phi3", "qwen2", "qwen3"])
def test_checkpoint_loads_into_the_transformer_engine_spec(variant: str, tmp_path: Path) -> None:
    import_hf(ImportSettings(save_model(tmp_path / "hf", variant), tmp_path / "megatron"))
    output = torchrun(1, HERE / "load_into_transformer_engine.py", tmp_path / "megatron")
    answer = json.loads(output.split("ANSWER")[1].splitlines()[0])
    saved = MegatronTensors(tmp_path / "megatron")
    assert answer["tensors"] == {name: list(spec.shape) for name, spec in saved.specs.items()}
    assert answer["objects"]
    assert answer["wrong"] == []
