"""The throughput benchmark on a tiny model, and what it counts and plans."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measuring import label, save
from benchmarks.throughput import Settings, fits, fitting_layers, measure, model_operations
from megatron_longrope2.files import read_json
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.planning.settings import PRESETS

LLAMA = PRESETS["llama3-8b"]
H100, H200 = 80e9, 141e9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("throughput")


@pytest.fixture(scope="module")
def found(folder: Path, megatron: None) -> dict[str, Any]:  # noqa: ARG001
    settings = Settings(
        model="examples/tiny_cpu/base",
        vocab_size=512,
        num_layers=2,
        lengths=(128, 1024),
        repeats=1,
        output=folder / "throughput.json",
        profile=folder / "profile.txt",
    )
    save(measure(settings=settings))
    return read_json(settings.output)


def test_ratios(found: dict[str, Any]) -> None:
    ratios = found["ratios"]
    kinds = ("ceiling_share", "step_time_vs_upstream", "step_time_vs_transformers")
    assert set(ratios) == {f"{kind}_{pack}" for kind in kinds for pack in ("128", "1k", "short_1k")}
    assert all(math.isfinite(value) and value > 0 for value in ratios.values())


def test_all_models_have_the_same_weights(found: dict[str, Any]) -> None:
    rows = found["measured"]["table"]
    losses = {(row["pack"], row["model"]): row["loss"] for row in rows}
    assert {row["documents"] for row in rows if row["pack"] == "short_1k"} == {4}
    for pack in ("128", "short_1k"):
        assert losses[pack, "ours"] == pytest.approx(losses[pack, "upstream"], rel=1e-6)
    for pack in ("128", "1k", "short_1k"):
        assert losses[pack, "ours"] == pytest.approx(losses[pack, "transformers"], rel=1e-4)


def test_table_and_profile(found: dict[str, Any], folder: Path) -> None:
    table = (folder / "throughput.md").read_text()
    assert found["environment"]["date"] in table
    models = [line.split("|")[4].strip() for line in table.splitlines() if line.startswith("| 1k ")]
    assert models == ["ours", "upstream", "transformers"]
    assert "| ceiling_share_1k " in table
    assert "aten::mm" in (folder / "profile.txt").read_text()
    assert found["measured"]["model"]["num_layers"] == 2
    assert found["settings"]["output"] == str(folder / "throughput.json")


def test_operations_are_those_of_a_step() -> None:
    shape = ModelDims("tiny", 2, 64, 96, 4, 2, 16, 256, 128)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            num_hidden_layers=2,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=256,
            attn_implementation="eager",
        )
    )
    tokens = torch.randint(0, 256, (3, 128))
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    lengths = [128] * 3
    linear = model_operations(shape, lengths) - (attention := 6 * 3 * 128**2 * 64 * 2)
    # Eager attention forms the masked half of the scores too.
    assert counter.get_total_flops() == pytest.approx(linear + 2 * attention, rel=1e-3)


def test_layers_that_fit() -> None:
    shape = replace(LLAMA, vocab_size=16128)
    few, many = (fitting_layers(shape, 131072, 0.9 * memory) for memory in (H100, H200))
    assert 2 <= few < many < 32
    assert fits(replace(shape, num_layers=many), 131072, 0.9 * H200, recompute=True)
    assert not fits(replace(shape, num_layers=many + 1), 131072, 0.9 * H200, recompute=True)
    assert fitting_layers(shape, 131072, 1.0) == 1
    assert fitting_layers(shape, 131072, math.inf) == 32


@pytest.mark.parametrize(("length", "name"), [(131072, "128k"), (8192, "8k"), (1000, "1000")])
def test_labels(length: int, name: str) -> None:
    assert label(length) == name
