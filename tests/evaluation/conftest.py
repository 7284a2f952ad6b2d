"""The tiny model, written once, and a launcher of worker modules."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.launch import torchrun
from tests.evaluation.tiny_llama import write_model


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `hf`, `megatron` and `books`."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def launch() -> Callable[..., str]:
    """Run a worker module of this folder in so many processes; its output."""

    def run(worker: str, *arguments: object, processes: int = 1) -> str:
        return torchrun(processes, "-m", f"tests.evaluation.{worker}", *map(str, arguments))

    return run
