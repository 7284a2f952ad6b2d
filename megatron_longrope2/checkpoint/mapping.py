"""How a Megatron tensor corresponds to tensors of a Hugging Face model: the mappings that tables use.

Megatron stacks the layers of a `torch_dist` checkpoint: one tensor a name, [layers, ...]. A mapping describes
one layer's slice of it (or a tensor outside the layers) and moves no data but its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_longrope2.model.dims import ModelDims

LAYERS = "decoder.layers."
"""Prefix of the Megatron names that are stacked over layers."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, shape and dtype, without its numbers."""

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" and the like."""
    return str(dtype).removeprefix("torch.")


# Joins tensors as `torch.cat` does; the dimension is 0 unless it is given.
Join = Callable[..., Tensor]


class JoinInPlace:
    """A `Join` into memory that it uses again: what it returns holds until the next call.

    New pages for each large tensor would take a quarter of an import's time.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __call__(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        """See `torch.cat`; the parts have one dtype."""
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        size = sum(part.nbytes for part in parts)
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.uint8)
        return torch.cat(tuple(parts), dim, out=self._memory[:size].view(parts[0].dtype).view(shape))


@dataclass(frozen=True)
class Mapping:
    """One Megatron name and the Hugging Face names that hold the same numbers, one tensor after the other.

    Attributes:
        megatron: name in a `torch_dist` checkpoint (Transformer Engine's, whichever layer spec trained it).
        hf: Hugging Face names, with `{layer}` where the layer's number stands.
        columns: names of `ModelDims` attributes, the sizes of the dimensions after the rows.
        rows: names of `ModelDims` attributes, the rows of each Hugging Face tensor.
    """

    megatron: str
    hf: tuple[str, ...]
    columns: tuple[str, ...] = ("hidden_size",)
    rows: tuple[str, ...] = ("hidden_size",)

    @property
    def in_layers(self) -> bool:
        """Whether every layer has it."""
        return self.megatron.startswith(LAYERS)

    def layers(self, dims: ModelDims) -> Sequence[int | None]:
        """The layers that have it; the single entry None where it is outside the layers."""
        return range(dims.num_layers) if self.in_layers else [None]

    def hf_names(self, layer: int | None) -> list[str]:
        """Hugging Face names of one layer."""
        return [name.format(layer=layer) for name in self.hf]

    def hf_shapes(self, dims: ModelDims) -> list[Shape]:
        """Shapes of the Hugging Face tensors, in the order of `hf`."""
        columns = [getattr(dims, size) for size in self.columns]
        return [(getattr(dims, size), *columns) for size in self.rows]

    def megatron_shape(self, dims: ModelDims) -> Shape:
        """Shape of one layer's Megatron tensor."""
        shapes = self.hf_shapes(dims)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def stacked_shape(self, dims: ModelDims) -> Shape:
        """Shape of the whole Megatron parameter, layers stacked."""
        shape = self.megatron_shape(dims)
        return (dims.num_layers, *shape) if self.in_layers else shape

    def to_megatron(self, parts: list[Tensor], dims: ModelDims, join: Join = torch.cat) -> Tensor:  # noqa: ARG002
        """One layer's Megatron tensor from the Hugging Face tensors, in the order of `hf`."""
        return parts[0] if len(parts) == 1 else join(parts)

    def to_hf(self, tensor: Tensor, dims: ModelDims) -> Sequence[Tensor]:
        """The Hugging Face tensors, in the order of `hf`, from one layer's Megatron tensor."""
        return tensor.split([shape[0] for shape in self.hf_shapes(dims)])


@dataclass(frozen=True)
class Vocabulary(Mapping):
    """A row for each token; Megatron pads with zero rows, so that tensor-parallel ranks get equal shares."""

    rows: tuple[str, ...] = ("vocab_size",)

    def megatron_shape(self, dims: ModelDims) -> Shape:
        return (dims.padded_vocab_size, dims.hidden_size)

    def to_megatron(self, parts: list[Tensor], dims: ModelDims, join: Join = torch.cat) -> Tensor:
        padding = parts[0].new_zeros(dims.vocab_padding, dims.hidden_size)
        return super().to_megatron([*parts, padding] if dims.vocab_padding else parts, dims, join)

    def to_hf(self, tensor: Tensor, dims: ModelDims) -> Sequence[Tensor]:
        return [tensor[: dims.vocab_size]]


@dataclass(frozen=True)
class QKV(Mapping):
    """Megatron's fused attention input: for each key-value group its queries' heads, its key, its value.

    `hf` names queries, keys and values, or the one tensor that holds them in this order (Phi3). Nothing is
    permuted inside a head: both sides rotate halves (`rotary_interleaved` is False).
    """

    rows: tuple[str, ...] = ("query_size", "key_value_size", "key_value_size")

    def to_megatron(self, parts: list[Tensor], dims: ModelDims, join: Join = torch.cat) -> Tensor:
        three = parts if len(parts) == 3 else parts[0].split(_qkv_rows(dims))
        groups = [part.unflatten(0, (dims.num_query_groups, -1)) for part in three]
        return join(groups, 1).flatten(0, 1)

    def to_hf(self, tensor: Tensor, dims: ModelDims) -> Sequence[Tensor]:
        groups = tensor.unflatten(0, (dims.num_query_groups, -1))
        rows = [size // dims.num_query_groups for size in _qkv_rows(dims)]
        parts = [part.flatten(0, 1) for part in groups.split(rows, dim=1)]
        return parts if len(self.hf) == 3 else [torch.cat(parts)]


def _qkv_rows(dims: ModelDims) -> list[int]:
    return [dims.query_size, dims.key_value_size, dims.key_value_size]
