"""The tiny model, written once, and what a Megatron job of each layout measures on it, run once."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import torchrun
from tests.evaluation.tiny_llama import write_model

Measured = Callable[[int, int, int], dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `hf`, `megatron` and `books`."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def measured(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Results of `worker` with so many tensor, pipeline and context parallel ranks."""

    @cache
    def run(tp: int, pp: int, cp: int) -> dict[str, Any]:
        output = tmp_path_factory.mktemp("measured") / "results.json"
        layout = map(str, (tp, pp, cp))
        torchrun(tp * pp * cp, "-m", "tests.evaluation.worker", tiny_llama, output, *layout)
        return json.loads(output.read_text())

    return run
