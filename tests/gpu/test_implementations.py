"""The torch spec, Transformer Engine's, and fused RoPE give one model: loss and gradients on every pack."""

import importlib.util
from typing import Any

import pytest
import torch

from megatron_longrope2 import device
from tests.gpu.conftest import python
from tests.gpu.model_worker import PACKS

NEEDS_ENGINE = [
    pytest.mark.gpu,
    pytest.mark.te,
    pytest.mark.skipif(
        not device.has_gpu() or importlib.util.find_spec("transformer_engine") is None,
        reason="no CUDA device with Transformer Engine (docs/gpu.md): its kernels run nowhere else",
    ),
]
ENGINE = pytest.param("Transformer Engine", marks=NEEDS_ENGINE)
FUSED = pytest.param("Transformer Engine, fused RoPE", marks=NEEDS_ENGINE)

# Of a gradient's norm. bf16 keeps 8 bits, and a gradient of the first layer has passed some thirty roundings.
TOLERANCE = {"cpu": 2e-5, "cuda": 4e-2}


@pytest.fixture(scope="module")
def results(megatron_on: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001
    output = tmp_path_factory.mktemp("implementations") / "results.pt"
    finished = python("-m", "tests.gpu.model_worker", output)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-5000:]
    return torch.load(output)


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of the loss and of every gradient, relative to its norm."""
    assert one["gradients"].keys() == other["gradients"].keys()
    differences = [abs(one["loss"] - other["loss"]) / abs(other["loss"])]
    for name, gradient in other["gradients"].items():
        assert gradient.norm() > 0, name
        differences.append(float((one["gradients"][name] - gradient).norm() / gradient.norm()))
    return max(differences)


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("implementation", ["torch", ENGINE, FUSED])
def test_as_transformers_in_float32(
    results: dict[str, Any], megatron_on: str, implementation: str, pack: str
) -> None:
    if pack not in results[implementation]:
        pytest.skip("fused RoPE takes one table for the whole pack; training switches it off there")
    difference = largest_difference(results[implementation][pack], results["reference"][pack])
    assert difference < TOLERANCE[megatron_on]


@pytest.mark.parametrize("pack", [pack for pack in PACKS if pack != "both windows"])
@pytest.mark.parametrize(
    ("one", "other"), [pytest.param(FUSED.values[0], ENGINE.values[0], marks=NEEDS_ENGINE)]
)
def test_fused_rope_is_unfused_rope(results: dict[str, Any], one: str, other: str, pack: str) -> None:
    assert largest_difference(results[one][pack], results[other][pack]) < 1e-2


def test_the_window_matters(results: dict[str, Any], megatron_on: str) -> None:
    """These comparisons would see a wrong window: the same tokens as one long or several short documents."""
    long, short = (results["reference"][pack]["gradients"] for pack in ("long window", "long documents"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert float((long[name] - short[name]).norm() / long[name].norm()) > 5 * TOLERANCE[megatron_on]
