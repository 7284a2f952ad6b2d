"""What both directions of a conversion share: the table that they return, and checks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_longrope2.checkpoint.mapping import Shape

_CACHED = 1 << 17
# Dtype: integers of its width, signed and unsigned, and the bits of its infinity without and with a sign.
_INFINITIES = {
    torch.float32: ((torch.int32, 0x7F800000), (torch.uint32, 0xFF800000)),
    torch.bfloat16: ((torch.int16, 0x7F80), (torch.uint16, 0xFF80)),
    torch.float16: ((torch.int16, 0x7C00), (torch.uint16, 0xFC00)),
}

TOKENIZER = "tokenizer"
"""Folder in a Megatron checkpoint that holds everything of the Hugging Face folder but the weights."""

DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Row:
    """One line of the mapping table of a conversion."""

    megatron: str
    shape: Shape
    dtype: torch.dtype
    hf: tuple[str, ...]


def dtype_option(name: str) -> torch.dtype | None:
    """The dtype that `--dtype` names; None for "auto"."""
    return None if name == "auto" else getattr(torch, name)


def table(rows: list[Row]) -> str:
    """The mapping table, one Megatron parameter a line."""
    lines = [("Megatron", "shape", "dtype", "Hugging Face")]
    for row in rows:
        dtype = str(row.dtype).removeprefix("torch.")
        lines.append((row.megatron, str(list(row.shape)), dtype, " + ".join(row.hf)))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[3]])
        for line in lines
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, by their bits: nothing but NaNs is beyond an infinity.

    Among signed integers the positive ones come last, among unsigned ones the negative. Part by part, so that
    the second look at a number finds it in the processor's cache.
    """
    bits = tensor.detach().contiguous().flatten()
    views = [(bits.view(dtype).numpy(), infinity) for dtype, infinity in _INFINITIES[tensor.dtype]]
    return all(
        values[start : start + _CACHED].max() < infinity
        for start in range(0, bits.numel(), _CACHED)
        for values, infinity in views
    )


def in_dtype(dtype: torch.dtype | None) -> str:
    """Which dtype a message is about: the one asked for, which may be too narrow, or none."""
    return "" if dtype is None else f" in {str(dtype).removeprefix('torch.')}"


def nbytes(shape: Shape, dtype: torch.dtype) -> int:
    """Size of a tensor in bytes."""
    return torch.Size(shape).numel() * dtype.itemsize


def some(names: list[str]) -> str:
    """Up to three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
