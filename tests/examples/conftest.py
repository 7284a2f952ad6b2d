"""The recipes' stages without their start-up time."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.tiny_cpu import stages
from megatron_longrope2.errors import InputError
from tests import processes


def _run(stage: stages.Stage, _: str, log: Path) -> float:
    start = time.monotonic()
    done = processes.run(*stage.command, ranks=stage.processes)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise InputError(f"{stage.name}: {log.read_text()[-5000:]}")
    return time.monotonic() - start


@pytest.fixture(scope="module")
def forked_stages() -> Iterator[None]:
    """Stages run in forked processes instead of started ones, on as many ranks as torchrun would start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_run", _run)
        yield
