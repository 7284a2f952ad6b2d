"""What is known of one rank after its rehearsal. Imports no Megatron."""

from dataclasses import dataclass, field
from typing import Any, Literal

GIB = 2**30

Category = Literal[
    "weights", "gradients", "optimizer states", "keys and values", "activations", "temporaries"
]


@dataclass(frozen=True)
class Rehearsal:
    """What one rank of a stage does.

    Attributes:
        stage: its name.
        rank: number.
        role: which one this is.
        peak: bytes.
        categories: bytes at the peak, by what they are for.
        peak_operation: what reached the peak, and its line.
        largest: the tensors that take the most at the peak, alike ones together.
        traffic: bytes sent, by collective, group and whether they leave the node.
        operations: how often each was called.
        launches: the least and the most operations of a layer's forward pass.
        read_backs: lines that made the host wait for the device, how often, and whether in a layer.
        largest_tensor: elements of the largest tensor of all.
        stand_ins: what could not be run, and what was run for it.
        seconds: that the rehearsal took.
    """

    stage: str
    rank: int
    role: str
    peak: int
    categories: dict[str, int]
    peak_operation: str
    largest: list[dict[str, Any]]
    traffic: list[dict[str, Any]]
    operations: dict[str, int]
    launches: tuple[int, int]
    read_backs: list[dict[str, Any]]
    largest_tensor: int
    stand_ins: dict[str, str]
    seconds: float = field(compare=False)
