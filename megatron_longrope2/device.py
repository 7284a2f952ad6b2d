"""The one place that knows whether there is a GPU.

Megatron-Core's trainer has no need for CUDA, only many call sites that say "cuda". Without a GPU, `install`
answers them on the CPU, so that the real trainer, optimizers and `torch_dist` checkpoints run over gloo, in
one process or several. With a GPU it changes nothing of torch. Call it before anything of `megatron` is
imported. A rehearsal lets another device than the CPU stand in for the GPU.
"""

import functools
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
# Functions of torch that make a tensor on the device that they are given.
CONSTRUCTORS = (
    "arange as_tensor empty empty_like eye full full_like linspace ones ones_like rand rand_like randint "
    "randn randn_like randperm tensor zeros zeros_like"
).split()


# What "cuda" means where there is no GPU.
_stand_in = CPU


def stand_in(device: torch.device) -> None:
    """Let this device be what "cuda" means from now on, after `install` and without a GPU."""
    global _stand_in
    _stand_in = device


def has_gpu() -> bool:
    """Whether Megatron runs on CUDA here."""
    return torch.cuda.is_available()


def current() -> torch.device:
    """This process's device, also before `install`."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else _stand_in


def distributed_backend() -> str:
    """The torch.distributed backend for this device."""
    return "nccl" if has_gpu() else "gloo"


def is_first_process() -> bool:
    """Whether this process speaks for the job: it writes results and warnings."""
    return os.environ.get("RANK", "0") == "0"


def free_memory() -> int:
    """Bytes that this process may still allocate: of its GPU, or its share of the machine's memory."""
    if current() != CPU:
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rendezvous_store() -> torch.distributed.Store | None:
    """A store for a process that no launcher started; None under torchrun or srun, which bring their own."""
    return None if "RANK" in os.environ else torch.distributed.HashStore()


@functools.cache
def install() -> None:
    """Let Megatron run on this machine: without a GPU, the CPU stands in for it."""
    # Megatron asks for this: tensor parallelism overlaps communication by the order of kernel launches.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if has_gpu():
        _skip_compilation_of_shipped_helpers()
        return
    # Megatron's jit_fuser is torch.compile, which would build C++ kernels at the first step.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    torch.compile = _eager
    # Megatron warns at its import about every CUDA library that is missing.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")
    _stand_in_for_torch_cuda()
    _stand_in_for_tensors()
    _stand_in_for_distributed()
    _stand_in_for_constructors()
    _skip_compilation_of_shipped_helpers()
    _let_megatron_start_without_cuda()
    if is_first_process():
        logger.warning("no GPU found: Megatron runs on the CPU over gloo")


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _eager(function: Any = None, **_: Any) -> Any:
    """A torch.compile, called as a function or as a decorator with options, that compiles nothing."""
    return function if function is not None else lambda decorated: decorated


class _Device(nullcontext[None]):
    """A torch.cuda.device. It is a class because torch checks devices with `isinstance`."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


def _returning(value: Any) -> Callable[..., Any]:
    """A new function on every call: torch's compiler refuses one function under two names."""
    return lambda *_, **__: value


class _Stream:
    """A stream or an event that is always finished."""

    cuda_stream = 0
    device = CPU
    wait_stream = wait_event = synchronize = record = wait = _returning(None)
    query = _returning(True)
    elapsed_time = _returning(0.0)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take the options of both, which mean nothing here."""

    def record_event(self, *_: Any) -> "_Stream":
        return self


def _stand_in_for_torch_cuda() -> None:
    cuda: Any = torch.cuda
    stream = _Stream()
    # One "device" per process: Megatron builds its model-parallel groups only where it counts devices.
    cuda.device_count = _returning(1)
    cuda.current_device = lambda: _stand_in
    for name in ("current_stream", "default_stream"):
        setattr(cuda, name, _returning(stream))
    cuda.Stream = cuda.Event = _Stream
    cuda.device = _Device
    cuda.stream = _returning(nullcontext())
    for name in ("_lazy_init", "set_device", "set_stream", "synchronize"):
        setattr(cuda, name, _returning(None))
    cuda._lazy_call = lambda call, **_: call()
    cuda.is_current_stream_capturing = lambda: False
    for name in ("empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, _returning(None))
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, _returning(0))
    cuda.memory_stats = lambda *_: {}
    cuda.get_device_capability = _returning((0, 0))
    cuda.get_device_properties = _returning(SimpleNamespace(name="cpu", major=0, minor=0))
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.manual_seed = cuda.manual_seed_all = torch.default_generator.manual_seed
    cuda.default_generators = defaultdict(lambda: torch.default_generator)
    for name in ("range_push", "range_pop"):
        setattr(cuda.nvtx, name, _returning(None))
    cuda.nvtx.range = _returning(nullcontext())


def _stand_in_for_constructors() -> None:
    """Each on its own: a `TorchFunctionMode` would do the same, but take every torch call through Python."""
    with CPU:  # torch looks up its constructors once, and `with torch.device("meta")` must know the real ones
        torch.empty(0)
    for name in CONSTRUCTORS:
        setattr(torch, name, _on_stand_in(getattr(torch, name)))


def _on_stand_in(constructor: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function, but a tensor for a CUDA device is made on what stands in for it."""

    @functools.wraps(constructor)
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _stand_in
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return constructor(*args, **kwargs)

    return made


def _stand_in_for_tensors() -> None:
    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *_, **__: self.to(_stand_in)
    tensor.pin_memory = lambda self, *_: self
    original_to, original_type = tensor.to, tensor.type

    @functools.wraps(original_to)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (_stand_in, *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _stand_in
        return original_to(self, *args, **kwargs)

    @functools.wraps(original_type)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Megatron's optimizers recognise parameters by the name "torch.cuda.FloatTensor".
        name = original_type(self, *args, **kwargs)
        return f"torch.cuda.{name.rpartition('.')[2]}" if isinstance(name, str) else name

    tensor.to, tensor.type = to, type_
    # The data loader would pin its batches for an accelerator.
    torch.accelerator.is_available = lambda: False


def _stand_in_for_distributed() -> None:
    dist: Any = torch.distributed
    dist.barrier = _without(dist.barrier, "device_ids")
    dist.init_process_group = _without(dist.init_process_group, "device_id")


def _without(function: Callable[..., Any], option: str) -> Callable[..., Any]:
    """The function, which is not told this option."""

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        options.pop(option, None)
        return function(*args, **options)

    return called


def _skip_compilation_of_shipped_helpers() -> None:
    """The wheel ships the compiled dataset helpers, but not the Makefile that start-up would call."""
    import megatron.core.datasets.utils as utils

    try:
        import megatron.core.datasets.helpers_cpp  # noqa: F401
    except ImportError:
        return
    utils.compile_helpers = _returning(None)


def _let_megatron_start_without_cuda() -> None:
    import megatron.core.inference.communication_utils as inference_communication
    import megatron.training.initialize as initialize
    import megatron.training.training as training

    # Its tracker of random states has no second generator here, and warns at every use that the CPU's
    # changed.
    logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
    training.initialize_megatron = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)
    training.set_jit_fusion_options = _returning(None)
    # Upstream asserts that the pipeline messages of generation are CUDA tensors.
    inference_communication._is_cuda = _returning(None)
