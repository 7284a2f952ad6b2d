"""What both directions of a conversion share: the table that they return, and what they check."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_longrope2.checkpoint.mapping import Shape, TensorSpec
from megatron_longrope2.errors import InputError
from megatron_longrope2.tables import text_table

TOKENIZER = "tokenizer"
"""Folder in a Megatron checkpoint that holds everything of the Hugging Face folder but the weights."""


@dataclass(frozen=True)
class Row(TensorSpec):
    """A Megatron parameter and the Hugging Face names that it corresponds to."""

    hf: tuple[str, ...]


def mapping_table(rows: list[Row]) -> str:
    """The mapping table, one Megatron parameter a line."""
    cells = [(row.name, list(row.shape), dtype_name(row.dtype), " + ".join(row.hf)) for row in rows]
    return text_table(("Megatron", "shape", "dtype", "Hugging Face"), cells, left=4)


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" and the like."""
    return str(dtype).removeprefix("torch.")


def dtype_option(name: str) -> torch.dtype | None:
    """The dtype that `--dtype` names; None for "auto"."""
    return None if name == "auto" else getattr(torch, name)


def converted(tensor: Tensor, dtype: torch.dtype | None, *, allow_nonfinite: bool, source: str) -> Tensor:
    """The tensor in another dtype (None: its own), with finite numbers only unless others are allowed.

    Raises:
        InputError: it holds NaN or infinity, perhaps because the dtype is too narrow.
    """
    tensor = tensor if dtype is None else tensor.to(dtype)
    # Both ends are NaN where any number is; torch.isfinite on the whole takes twenty times as long.
    if not allow_nonfinite and not torch.stack(tensor.aminmax()).isfinite().all():
        in_dtype = "" if dtype is None else f" in {dtype_name(dtype)}"
        raise InputError(
            f"{source}: holds NaN or infinity{in_dtype}; pass --allow-nonfinite to convert it all the same"
        )
    return tensor


def check_tensors(
    found: Mapping[str, Shape], expected: Mapping[str, Shape], folder: Path, model_type: str
) -> None:
    """Refuse weights that are not those of a model.

    Args:
        found, expected: name to shape.
        folder: what was read.
        model_type: the model's architecture.

    Raises:
        InputError: a tensor is missing, superfluous, or has another shape.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"{folder}: {_some(missing)}: missing; is it a whole {model_type} model?")
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(
            f"{folder}: {_some(extra)}: not in a {model_type} model; config.json and weights do not belong "
            "together"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise InputError(
                f"{folder}: {name}: has shape {list(found[name])}, config.json asks for {list(shape)}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
