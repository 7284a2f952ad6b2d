"""What is planned: the model, the run and the machines."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, types, validators

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.options import options

PRESETS = {
    dims.name: dims
    for dims in (
        ModelDims("llama3-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192),
        ModelDims("llama3-70b", 80, 8192, 28672, 64, 8, 128, 128256, 8192),
        ModelDims("phi3-mini", 32, 3072, 8192, 32, 32, 96, 32064, 2048),
        ModelDims("qwen3-8b", 36, 4096, 12288, 32, 8, 128, 151936, 32768),
        ModelDims("mistral-7b", 32, 4096, 14336, 32, 8, 128, 32768, 32768),
    )
}

GpuName = Literal["a100", "h100"]


@options("Run and machines", first=True)
@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The training run that is planned, and the machines that it runs on.

    Attributes:
        model: The model: a Hugging Face folder, a Megatron checkpoint, or one of llama3-8b, llama3-70b,
            phi3-mini, qwen3-8b and mistral-7b.
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


def load_dims(model: str) -> ModelDims:
    """The sizes of a preset, or of the model in a folder.

    Args:
        model: a name of `PRESETS`, a Hugging Face folder, or a Megatron checkpoint.

    Raises:
        InputError: neither of them, or a model that cannot be converted.
    """
    if model in PRESETS:
        return PRESETS[model]
    if (Path(model) / "config.json").is_file():
        from megatron_longrope2.checkpoint.hf_config import HFConfig

        return HFConfig.read(model).dims()
    if not Path(model).is_dir():
        raise InputError(
            f"{model}: neither a folder nor a known model; known are {', '.join(PRESETS)}, else name a "
            "Hugging Face folder or a Megatron checkpoint"
        )
    from megatron_longrope2.checkpoint.megatron_files import MegatronTensors

    return ModelDims.from_args(MegatronTensors(model).args, Path(model).name)
