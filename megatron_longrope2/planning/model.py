"""The sizes of a model, from a preset, a Hugging Face folder or a Megatron checkpoint."""

from pathlib import Path

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.dims import ModelDims

PRESETS = {
    dims.name: dims
    for dims in (
        ModelDims("llama3-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192),
        ModelDims("llama3-70b", 80, 8192, 28672, 64, 8, 128, 128256, 8192),
        ModelDims("phi3-mini", 32, 3072, 8192, 32, 32, 96, 32064, 2048),
    )
}


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
