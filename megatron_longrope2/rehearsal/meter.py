"""Counts what one rank does: bytes alive and their peak, operations, traffic, numbers read back."""

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_longrope2.rehearsal.result import Category

# Operations after which the host waits for the device, beside copies to the host.
_WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
}


@dataclass(eq=False)
class Allocation:
    """A piece of memory.

    Attributes:
        size: bytes.
        shape, dtype: of the tensor that it was made for.
        operation: what made it.
        where: the line that asked for it, "" in a backward pass without code of its own.
        born, died: numbers of operations so far; None: it is alive.
    """

    size: int
    shape: tuple[int, ...]
    dtype: str
    operation: str
    where: str
    born: int
    died: int | None = None
    category: Category = "temporaries"


class Meter(TorchDispatchMode):
    """Within, everything that happens on the device is counted.

    Args:
        device_type: of the tensors that count; "cpu" measures a real run without a GPU.
        gpus_per_node: ranks that share a node, by their numbers.

    Attributes:
        allocations: all memory ever asked for, in order.
        peak: most bytes alive at once.
        operations: how often each was called, without views.
        launches: of each layer's forward pass, the operations.
        read_backs: lines that made the host wait, how often, by whether a layer did.
        traffic: bytes sent, by collective, group and whether they leave the node.
        largest_tensor: the most elements of a tensor that a layer's forward pass made.
    """

    def __init__(self, device_type: str, gpus_per_node: int = 8) -> None:
        super().__init__()
        self.allocations: list[Allocation] = []
        self.peak = self.largest_tensor = 0
        self.operations: Counter[str] = Counter()
        self.launches: list[int] = []
        self.read_backs: Counter[tuple[str, bool]] = Counter()
        self.traffic: Counter[tuple[str, str, bool]] = Counter()
        self._device_type, self._gpus_per_node = device_type, gpus_per_node
        self._alive: dict[int, tuple[Any, Allocation]] = {}
        self._bytes = self._calls = self._peak_at = 0
        self._peak_operation = ""
        self._layers: list[int] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "Meter":
        self._hooks = [
            register_module_forward_pre_hook(self._enter_layer),
            register_module_forward_hook(self._leave_layer, always_call=True),
        ]
        self._saved = saved_tensors_hooks(self._save, lambda tensor: tensor)
        self._saved.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._saved.__exit__(*exception)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        self._calls += 1
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if self._counts(leaf)]
        outputs = [leaf for leaf in tree_leaves(output) if self._counts(leaf)]
        if function.namespace == "c10d":
            self._note_traffic(function, args, inputs)
        elif inputs and (function in _WAITING or _goes_to_host(function, output)):
            self.read_backs[_caller(), bool(self._layers)] += 1
        elif inputs or outputs:
            new = [tensor for tensor in outputs if self._allocate(tensor, function)]
            if new or function._schema.is_mutable:
                self.operations[function.overloadpacket.__name__] += 1
        return output

    def label(self, tensors: Iterable[Any], category: Category) -> None:
        """Say what the memory of tensors is for, unless something else was said before."""
        for tensor in tensors:
            if self._counts(tensor):
                self._allocate(tensor, None)
                _, allocation = self._alive[tensor.untyped_storage()._cdata]
                if allocation.category in ("temporaries", "activations"):
                    allocation.category = category

    def at_peak(self) -> list[Allocation]:
        """What was alive at the peak, the largest first."""
        at = self._peak_at
        alive = [one for one in self.allocations if one.born <= at and (one.died is None or one.died > at)]
        return sorted(alive, key=lambda one: -one.size)

    @property
    def peak_operation(self) -> str:
        """The operation that reached the peak, and the line that called it."""
        return self._peak_operation

    def _counts(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device.type == self._device_type

    def _allocate(self, tensor: Tensor, function: Any) -> bool:
        """Count a tensor's memory; whether it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return False
        name = function.overloadpacket.__name__ if function else ""
        size = storage.nbytes()
        where = _caller() if size else ""
        allocation = Allocation(
            size, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), name, where, self._calls
        )
        self.allocations.append(allocation)
        if self._layers:
            self.largest_tensor = max(self.largest_tensor, tensor.numel())
        self._alive[key] = weakref.ref(storage, lambda _: self._free(key)), allocation
        self._bytes += size
        if self._bytes > self.peak:
            self.peak, self._peak_at = self._bytes, self._calls
            self._peak_operation = f"{name} {where}".strip()
        return True

    def _free(self, key: int) -> None:
        _, allocation = self._alive.pop(key)
        allocation.died = self._calls + 1
        self._bytes -= allocation.size

    def _save(self, tensor: Tensor) -> Tensor:
        """What the backward pass will read is an activation, unless it is a weight."""
        self.label([tensor], "activations")
        return tensor

    def _enter_layer(self, module: Any, _: Any) -> None:
        if isinstance(module, TransformerLayer):
            self._layers.append(self.operations.total())

    def _leave_layer(self, module: Any, *_: Any) -> None:
        if isinstance(module, TransformerLayer):
            self.launches.append(self.operations.total() - self._layers.pop())

    def _note_traffic(self, function: Any, args: Any, inputs: Sequence[Tensor]) -> None:
        name = function.overloadpacket.__name__.strip("_")
        group = next((one for one in map(_process_group, args) if one is not None), None)
        if group is None or name.startswith(("recv", "barrier")):
            return
        ranks = dist.get_process_group_ranks(group)
        given = sum(one.numel() * one.element_size() for one in inputs)
        leaves = len({rank // self._gpus_per_node for rank in ranks}) > 1
        self.traffic[name, _group_name(tuple(ranks)), leaves] += _sent(name, given, len(ranks))


def _sent(name: str, given: int, ranks: int) -> int:
    """Bytes that a rank sends in a collective, as rings send them.

    Args:
        name: c10d's.
        given: bytes of the tensors it was called with, those for the results included.
    """
    if name.startswith("allreduce"):
        return 2 * given * (ranks - 1) // ranks
    if name.startswith(("allgather", "reduce_scatter")):
        # The whole, and one rank's part of it.
        return given * (ranks - 1) // (ranks + 1)
    if name.startswith("alltoall"):
        return given // 2 * (ranks - 1) // ranks
    return given


def _goes_to_host(function: Any, output: Any) -> bool:
    copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    return function in copies and isinstance(output, Tensor) and output.device.type == "cpu"


def _process_group(value: Any) -> dist.ProcessGroup | None:
    try:
        return dist.ProcessGroup.unbox(value)
    except (RuntimeError, TypeError, AttributeError):
        return None


@cache
def _group_name(ranks: tuple[int, ...]) -> str:
    """What Megatron calls the group of these ranks."""
    groups = {
        "tensor": mpu.get_tensor_model_parallel_group(),
        "context": mpu.get_context_parallel_group(),
        "pipeline": mpu.get_pipeline_model_parallel_group(),
        "data": mpu.get_data_parallel_group(),
        "data and context": mpu.get_data_parallel_group(with_context_parallel=True),
        "model": mpu.get_model_parallel_group(),
    }
    for name, group in groups.items():
        if tuple(dist.get_process_group_ranks(group)) == ranks:
            return name
    return f"{len(ranks)} ranks"


def _caller() -> str:
    """File, line and function of the innermost code of Megatron or this package, but for the rehearsal's."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if (place := _source(frame.f_code.co_filename)) is not None:
            return f"{place}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


@cache
def _source(file: str) -> str | None:
    """The file's path from its package on; None where it does not count."""
    for package in ("megatron_longrope2/", "megatron/"):
        place = file.rfind(f"/{package}") + 1
        if place and not file.startswith((f"{package}rehearsal/", f"{package}device.py"), place):
            return file[place:]
    return None
