"""The sizes of a model, from a preset, a Hugging Face folder or a Megatron checkpoint."""

from pathlib import Path

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.dims import ModelDims

VOCABULARY_UNIT = 128
"""Megatron pads the vocabulary to a multiple of this times the tensor parallel size."""


PRESETS = {
    shape.name: shape
    for shape in (
        ModelDims("llama3-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192),
        ModelDims("llama3-70b", 80, 8192, 28672, 64, 8, 128, 128256, 8192),
        ModelDims("phi3-mini", 32, 3072, 8192, 32, 32, 96, 32064, 2048),
    )
}


def load_shape(model: str) -> ModelDims:
    """The sizes of a preset, or of the model in a folder.

    Args:
        model: a name of `PRESETS`, a Hugging Face folder, or a Megatron checkpoint.

    Raises:
        InputError: neither of them, or a model that cannot be converted.
    """
    if model in PRESETS:
        return PRESETS[model]
    if (Path(model) / "config.json").is_file():
        return _from_hf(model)
    if not Path(model).is_dir():
        raise InputError(
            f"{model}: neither a folder nor a known model; known are {', '.join(PRESETS)}, else name a "
            "Hugging Face folder or a Megatron checkpoint"
        )
    return _from_megatron(model)


def _from_hf(folder: str) -> ModelDims:
    from megatron_longrope2.checkpoint.hf_config import HFConfig

    return HFConfig.read(folder).dims()


def _from_megatron(folder: str) -> ModelDims:
    from megatron_longrope2.checkpoint.megatron_files import MegatronTensors

    return ModelDims.from_args(MegatronTensors(folder).args, Path(folder).name)
