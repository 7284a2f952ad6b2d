"""Megatron is imported by these tests, in this process."""

from collections.abc import Iterator

import pytest
import torch

from megatron_longrope2 import device

device.install()

from megatron_longrope2.model.loading import unload_model


@pytest.fixture(scope="module")
def megatron() -> Iterator[None]:
    """What a module's tests initialise in this process is undone when they are over."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    unload_model()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
