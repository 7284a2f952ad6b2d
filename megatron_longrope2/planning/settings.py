"""What is planned: the model, the run and the machines."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from cyclopts import Parameter, types, validators

from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.options import options
from megatron_longrope2.planning.model import load_dims

GpuName = Literal["a100", "h100"]


@options("Run and machines", first=True)
@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The training run that is planned, and the machines that it runs on.

    Attributes:
        model: The model: a Hugging Face folder, a Megatron checkpoint, or one of llama3-8b, llama3-70b and
            phi3-mini.
        length: The target length: tokens of a training segment.
        original_length: The window that the model was pre-trained on, in tokens, if it is not the one that
            the model states.
        gpus: The number of GPUs of the run.
        gpus_per_node: The number of GPUs that share a fast link.
        gpu: The kind of GPU.
        memory: The memory of a GPU in GiB.
        tokens: The number of tokens of the whole run, for example 10e9.
        global_batch_size: The number of segments of an optimizer step.
        long_share: The share of the segments that belong to the long window.
    """

    model: str
    length: types.PositiveInt = 131072
    original_length: types.PositiveInt | None = None
    gpus: types.PositiveInt = 64
    gpus_per_node: types.PositiveInt = 8
    gpu: GpuName = "h100"
    memory: types.PositiveFloat = 80.0
    tokens: types.PositiveFloat = 10e9
    global_batch_size: types.PositiveInt = 64
    long_share: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))] = 0.7

    def dims(self) -> ModelDims:
        """The model's sizes; InputError as `load_dims`."""
        dims = load_dims(self.model)
        return replace(dims, original_length=self.original_length or dims.original_length)
