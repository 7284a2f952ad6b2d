"""A parallel layout, and all layouts that a model and a length admit."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.planning.settings import PlanSettings

Recompute = Literal["none", "mlp", "full"]

RECOMPUTE_ARGUMENTS: dict[Recompute, str] = {
    "none": "",
    "mlp": "--recompute-granularity selective --recompute-modules mlp",
    "full": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
}


@dataclass(frozen=True)
class Layout:
    """How a run is shared among GPUs. Sequence parallelism is on where `tensor` > 1; micro-batches are 1.

    Attributes:
        tensor, context, pipeline, data: sizes of the parallel groups.
        recompute: what the backward pass computes again: nothing, every MLP, or every layer.
    """

    tensor: int
    context: int
    pipeline: int
    data: int
    recompute: Recompute

    def __str__(self) -> str:
        sizes = {"TP": self.tensor, "CP": self.context, "PP": self.pipeline, "DP": self.data}
        name = " x ".join(f"{kind}{size}" for kind, size in sizes.items() if size > 1) or "one GPU"
        return name if self.recompute == "none" else f"{name} with {self.recompute} recomputation"

    def arguments(self) -> str:
        """Megatron's command line for this layout."""
        parts = [
            f"--tensor-model-parallel-size {self.tensor}",
            "--sequence-parallel" if self.tensor > 1 else "",
            f"--context-parallel-size {self.context}",
            f"--pipeline-model-parallel-size {self.pipeline}",
            "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
            RECOMPUTE_ARGUMENTS[self.recompute],
        ]
        return " ".join(part for part in parts if part)


def layouts(model: ModelDims, settings: PlanSettings) -> Iterator[Layout]:
    """Every layout of the GPUs that Megatron and mixed windows accept.

    Tensor parallelism divides the query groups and stays inside a node; pipeline stages are equal; both
    windows are multiples of 2 x CP (the long one also x TP); the global batch is a multiple of DP.
    """
    sizes = product(_divisors(model.num_query_groups), _divisors(settings.gpus), _divisors(model.num_layers))
    for tensor, context, pipeline in sizes:
        data, rest = divmod(settings.gpus, tensor * context * pipeline)
        chunk = 2 * context if context > 1 else 1
        if (
            rest == 0
            and tensor <= settings.gpus_per_node
            and settings.global_batch_size % data == 0
            and settings.length % (chunk * tensor) == 0
            and model.original_length % chunk == 0
        ):
            yield from (Layout(tensor, context, pipeline, data, kind) for kind in RECOMPUTE_ARGUMENTS)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
