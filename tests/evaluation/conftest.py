"""The tiny model, written once, and what a Megatron job of each layout measures on it, run once."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.distributed.launch import torchrun
from tests.evaluation.harness_tasks import write_tasks
from tests.evaluation.tiny_llama import long_factors, write_model

Measured = Callable[[int, int, int], dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `hf`, `megatron`, `books`, `tasks` and `long.json`."""
    base = tmp_path_factory.getbasetemp()
    # All of pytest-xdist's workers share it.
    folder = (base.parent if base.name.startswith("popen-") else base) / "tiny_llama"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            write_model(folder)
            write_tasks(folder / "tasks")
            long_factors().save(folder / "long.json")
    return folder


@pytest.fixture(scope="session")
def measured(tiny_llama: Path) -> Measured:
    """Results of `worker` with so many tensor, pipeline and context parallel ranks."""

    @cache
    def run(tp: int, pp: int, cp: int) -> dict[str, Any]:
        output = tiny_llama / f"measured-{tp}-{pp}-{cp}.json"
        with FileLock(f"{output}.lock"):
            if not output.exists():
                layout = map(str, (tp, pp, cp))
                torchrun(tp * pp * cp, "-m", "tests.evaluation.worker", tiny_llama, output, *layout)
            return json.loads(output.read_text())

    return run
