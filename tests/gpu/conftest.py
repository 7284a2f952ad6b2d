"""The devices that tests run on."""

import os
import subprocess
import sys

import pytest
import torch

from megatron_longrope2 import device
from tests import processes

device.install()

NO_GPU = "no CUDA device: this is shown on a GPU only"
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def where(request: pytest.FixtureRequest) -> str:
    """Where a test's tensors live."""
    return request.param


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(device.has_gpu(), reason="Megatron runs on the GPU")),
        pytest.param("cuda", marks=ON_GPU),
    ],
)
def megatron_on(request: pytest.FixtureRequest) -> str:
    """Where Megatron runs in this session; the other one is skipped."""
    return request.param


def python(*command: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python COMMAND...`; without a GPU, in a process that has imported Megatron already."""
    if not device.has_gpu():
        return processes.run(*command, **env)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, **env},
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
