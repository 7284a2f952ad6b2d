"""The devices that tests run on."""

import pytest
import torch

from megatron_longrope2 import device

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
