"""A device and process groups that do nothing, on which the real code of one rank runs.

Tensors of the device "fake" have shapes and types, but no memory (torch's fake tensors); tensors of the host
are real. What a fake tensor holds is not known: where the code reads a number back from the device, it gets
1 (or False), and the meter takes note of it.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from megatron_longrope2 import device

FAKE = "fake"
_BACKEND = f"cpu:fake,{FAKE}:fake"


def start_rank(rank: int, world_size: int, memory: int) -> None:
    """Make this process a rank of a job on fake GPUs; for good, and before Megatron is initialised.

    Args:
        rank: this one.
        world_size: ranks of the job.
        memory: bytes that the code is told to be free on a GPU.
    """
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    device.install()
    _setup_privateuseone_for_python_backend(FAKE)
    device.stand_in(torch.device(FAKE, 0))
    torch.cuda.mem_get_info = lambda *_: (memory, memory)
    nn.Module._apply = _apply
    dist.init_process_group(_BACKEND, rank=rank, world_size=world_size, store=FakeStore())
    dist.new_group = _with_fake_backend(dist.new_group)
    dist.all_gather_object = _all_gather_object
    dist.broadcast_object_list = lambda *_, **__: None


class _FakeTensorMode(FakeTensorMode):
    """torch's, which is told that the device cannot compute what is constant."""

    avoid_device_init = True


class FakeTensors(TorchDispatchMode):
    """Within, tensors of the fake device are fake, and tensors of the host are real."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = _FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> "FakeTensors":
        # `torch.tensor(numbers, device=...)` makes the tensor on the host before it moves it.
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        if not any(issubclass(kind, FakeTensor) for kind in types) and (
            wanted is None or torch.device(wanted).type != FAKE
        ):
            return function(*args, **kwargs)
        if function is torch.ops.aten._local_scalar_dense.default:
            return _any_number(args[0])
        if function.namespace == "c10d":
            work = FakeWork().boxed()
            return work if len(function._schema.returns) == 1 else (args[0], work)
        with self._mode:
            return function(*args, **kwargs)


def _any_number(tensor: Tensor) -> float | int | bool:
    if tensor.dtype == torch.bool:
        return False
    return 1.0 if tensor.dtype.is_floating_point else 1


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:  # noqa: ARG001
    """`nn.Module._apply`, which cannot swap the content of fake parameters: new ones take their place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            with torch.no_grad():
                changed = function(parameter)
            if changed is not parameter:
                replaced = nn.Parameter(changed, parameter.requires_grad)
                replaced.__dict__.update(parameter.__dict__)
                part._parameters[name] = replaced
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else function(buffer)
    return module


def _with_fake_backend(new_group: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        return new_group(*args, **{**kwargs, "backend": _BACKEND, "pg_options": None})

    return made


def _all_gather_object(objects: list[Any], own: Any, group: Any = None) -> None:  # noqa: ARG001
    """As if every rank had this one's object."""
    objects[:] = [own] * len(objects)
