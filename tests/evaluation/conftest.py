"""The tiny model, written once, and a launcher of worker scripts."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_llama import write_model


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `hf`, `megatron` and `books`."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def launch() -> Callable[..., str]:
    """Run a worker script of this folder in so many processes; its output, or its failure."""

    def run(worker: str, *arguments: object, processes: int = 1) -> str:
        script = str(Path(__file__).parent / worker)
        command = [sys.executable, script]
        if processes > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            options = ["--nproc-per-node", str(processes), "--master-port", str(port)]
            command = [sys.executable, "-m", "torch.distributed.run", *options, script]
        environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}}
        finished = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=600,
            env={**environment, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert finished.returncode == 0, (finished.stdout + finished.stderr)[-6000:]
        return finished.stdout

    return run
