"""As far as arguments go, a machine with eight GPUs and Transformer Engine: what would be built there."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope2 import device

device.install()

from megatron.core.models.common.embeddings import rope_utils
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.training.global_vars import destroy_global_vars

from megatron_longrope2.checkpoint.conversion import import_hf
from megatron_longrope2.checkpoint.settings import ImportSettings
from megatron_longrope2.model import arguments, loading
from megatron_longrope2.model.arguments import model_config
from megatron_longrope2.model.builder import LongRoPE2ModelConfig
from megatron_longrope2.training.arguments import parse_training_arguments
from tests.checkpoint.test_round_trip import longrope2_factors
from tests.checkpoint.tiny_models import save_model


class Built(Exception):
    """A model would be built of this configuration."""

    def __init__(self, config: LongRoPE2ModelConfig) -> None:
        super().__init__()
        self.config = config


@pytest.fixture
def big_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As far as arguments go: eight GPUs with Transformer Engine. What would build a model raises `Built`."""
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return object() if name == "transformer_engine" else found(name, package)

    def built(config: LongRoPE2ModelConfig) -> None:
        raise Built(config)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(arguments, "has_gpu", lambda: True)
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", object())
    monkeypatch.setattr(loading, "initialize_megatron", lambda **_: None)
    monkeypatch.setattr(loading, "build", built)
    monkeypatch.setenv("WORLD_SIZE", "8")
    yield
    forget()


def forget() -> None:
    destroy_global_vars()
    destroy_num_microbatches_calculator()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    longrope2_factors(folder)
    import_hf(
        ImportSettings(save_model(folder / "hf"), folder / "megatron", rope_factors=folder / "factors.json")
    )
    return folder / "megatron"


def training(checkpoint: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What `longrope2 train` does before it builds its model."""
    run = "--micro-batch-size 1 --seq-length 256 --train-iters 1 --lr 1e-3 --save-interval 1".split()
    pool = ["--pool", "long", "1", "nowhere"]
    monkeypatch.setattr(
        sys, "argv", ["train", "--pretrained-checkpoint", str(checkpoint), *run, *pool, *words]
    )
    raise Built(model_config(parse_training_arguments()))


LAYOUT = {"tensor_model_parallel_size": 2, "context_parallel_size": 2, "bf16": True}
LAYOUT_WORDS = "--tensor-model-parallel-size 2 --context-parallel-size 2 --bf16".split()


def config_of(action: Callable[[], object]) -> LongRoPE2ModelConfig:
    with pytest.raises(Built) as built:
        action()
    forget()
    return built.value.config
