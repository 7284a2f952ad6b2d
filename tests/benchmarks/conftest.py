"""Benchmarks run in this process, one after the other; each leaves a Megatron that is taken down."""

from collections.abc import Iterator

import pytest
import torch

from megatron_longrope2 import device

device.install()

from megatron_longrope2.model.loading import unload_model


@pytest.fixture(scope="module")
def megatron() -> Iterator[None]:
    """What a benchmark initialises is undone when the module's tests are over."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    unload_model()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
