"""The shape of a model, as Megatron's arguments have it, without its weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_longrope2.checkpoint.architectures import ARCHITECTURES
from megatron_longrope2.checkpoint.hf_config import HFConfig, megatron_args
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.planning.settings import PRESETS, load_dims

# Of a checkpoint's arguments, what belongs to the run that wrote it.
_OF_A_RUN = (
    "seq_length params_dtype tensor_model_parallel_size pipeline_model_parallel_size no_save_optim "
    "no_save_rng ckpt_format longrope2_factors"
).split()


def shape_arguments(model: str, original_length: int | None) -> dict[str, Any]:
    """What a run takes from the checkpoint of a model: arguments of Megatron and their values.

    Args:
        model: a preset of the planner, a Hugging Face folder (its config.json is enough), or a Megatron
            checkpoint.
        original_length: of the short window, tokens, if it is not the one that the model states.

    Raises:
        InputError: none of them, or a model that cannot be converted.
    """
    dims = load_dims(model)
    dims = replace(dims, original_length=original_length or dims.original_length)
    is_folder = model not in PRESETS
    has_config = is_folder and Path(model, "config.json").is_file()
    # The name of a preset begins with its architecture's; the others are Llamas but for their weights.
    kind = next((name for name in ARCHITECTURES if model.startswith(f"{name}-")), "llama")
    config = HFConfig.read(model) if has_config else HFConfig.of(dims, kind)
    given = megatron_args(
        config, dims, factors=None, params_dtype=torch.float32, tokenizer_folder=Path(model)
    )
    shape = {name: value for name, value in vars(given).items() if name not in _OF_A_RUN}
    if is_folder and not has_config:
        saved = MegatronTensors(model).args
        shape = {name: getattr(saved, name) for name in shape if hasattr(saved, name)}
    nothing_is_tokenized = {"tokenizer_type": "NullTokenizer", "tokenizer_model": None}
    return (
        shape
        | nothing_is_tokenized
        | {name: getattr(dims, name) for name in ("vocab_size", "original_length")}
    )
