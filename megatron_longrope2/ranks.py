"""What the ranks of a job do together."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from megatron_longrope2.errors import InputError


def on_main[T](function: Callable[[], T]) -> T:
    """Call `function` on the main rank and give every rank its result, or its InputError."""
    if not dist.is_initialized():
        return function()
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [(True, function())]
        except InputError as error:
            box = [(False, str(error))]
    dist.broadcast_object_list(box, src=0)
    succeeded, result = box[0]
    if not succeeded:
        raise InputError(result)
    return result
