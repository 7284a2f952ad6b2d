"""How a Megatron tensor corresponds to tensors of a Hugging Face model: the mappings that tables use.

Megatron stacks the layers of a `torch_dist` checkpoint: one tensor a name, [layers, ...]. A mapping describes
one layer's slice of it (or a tensor outside the layers) and moves no data but its own.
"""

from abc import ABC, abstractmethod
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


@dataclass(frozen=True)
class Block:
    """Whole rows of a Megatron tensor that are converted without its other rows.

    Attributes:
        rows: how many they are.
        sources: which of a mapping's Hugging Face tensors they are made of.
        make: the rows, from those tensors; a view of one of them where possible.
        split: those tensors, from the rows; None where the rows hold nothing of them.
    """

    rows: int
    sources: tuple[int, ...]
    make: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]] | None


@dataclass(frozen=True)
class Mapping(ABC):
    """One Megatron name and the Hugging Face names that hold the same numbers.

    Attributes:
        megatron: name in a `torch_dist` checkpoint (Transformer Engine's, whichever layer spec trained it).
        hf: Hugging Face names, with `{layer}` where the layer's number stands.
        columns: names of `ModelDims` attributes, the sizes of the dimensions after the rows.
    """

    megatron: str
    hf: tuple[str, ...]
    columns: tuple[str, ...] = ("hidden_size",)

    @property
    def in_layers(self) -> bool:
        """Whether every layer has it."""
        return self.megatron.startswith(LAYERS)

    @abstractmethod
    def hf_rows(self, dims: ModelDims) -> list[int]:
        """Rows of each Hugging Face tensor, in the order of `hf`."""

    def blocks(self, dims: ModelDims) -> list[Block]:
        """The Megatron tensor from first row to last; the blocks split into all of `hf`, in order."""
        return [_same_rows(rows, source) for source, rows in enumerate(self.hf_rows(dims))]

    def megatron_shape(self, dims: ModelDims) -> Shape:
        """Shape of one layer's Megatron tensor."""
        return (sum(block.rows for block in self.blocks(dims)), *self._columns(dims))

    def stacked_shape(self, dims: ModelDims) -> Shape:
        """Shape of the whole Megatron parameter, layers stacked."""
        shape = self.megatron_shape(dims)
        return (dims.num_layers, *shape) if self.in_layers else shape

    def hf_shapes(self, dims: ModelDims) -> list[Shape]:
        """Shapes of the Hugging Face tensors, in the order of `hf`."""
        return [(rows, *self._columns(dims)) for rows in self.hf_rows(dims)]

    def _columns(self, dims: ModelDims) -> Shape:
        return tuple(getattr(dims, size) for size in self.columns)

    def to_hf(self, tensor: Tensor, dims: ModelDims) -> list[Tensor]:
        """The Hugging Face tensors, in the order of `hf`, from the whole Megatron tensor."""
        blocks = self.blocks(dims)
        pairs = zip(blocks, tensor.split([block.rows for block in blocks]), strict=True)
        return [part for block, rows in pairs if block.split is not None for part in block.split(rows)]

    def layers(self, dims: ModelDims) -> range:
        """The layers that have it; the single number 0 where it is outside the layers."""
        return range(dims.num_layers if self.in_layers else 1)

    def hf_names(self, layer: int) -> list[str]:
        """Hugging Face names of one layer (`layer` is ignored outside the layers)."""
        return [name.format(layer=layer) for name in self.hf]


def _same_rows(rows: int, source: int) -> Block:
    return Block(rows, (source,), lambda parts: parts[0], lambda tensor: (tensor,))


@dataclass(frozen=True)
class Rows(Mapping):
    """The rows of the Hugging Face tensors, one tensor after the other.

    Attributes:
        rows: names of `ModelDims` attributes, one for each Hugging Face tensor.
    """

    rows: tuple[str, ...] = ("hidden_size",)

    def hf_rows(self, dims: ModelDims) -> list[int]:
        return [getattr(dims, size) for size in self.rows]


@dataclass(frozen=True)
class Vocabulary(Mapping):
    """A row for each token; Megatron pads with zero rows, so that tensor-parallel ranks get equal shares."""

    def hf_rows(self, dims: ModelDims) -> list[int]:
        return [dims.vocab_size]

    def blocks(self, dims: ModelDims) -> list[Block]:
        blocks = super().blocks(dims)
        if dims.vocab_padding:
            # Made of the rows only to have their dtype.
            shape = (dims.vocab_padding, *self._columns(dims))
            blocks.append(Block(dims.vocab_padding, (0,), lambda parts: parts[0].new_zeros(shape), None))
        return blocks


@dataclass(frozen=True)
class QKV(Mapping):
    """Megatron's fused attention input: for each key-value group its queries' heads, its key, its value.

    `hf` names queries, keys and values, or the one tensor that holds them in this order (Phi3). Nothing is
    permuted inside a head: both sides rotate halves (`rotary_interleaved` is False).
    """

    def hf_rows(self, dims: ModelDims) -> list[int]:
        rows = [dims.query_size, dims.key_value_size, dims.key_value_size]
        return rows if len(self.hf) == 3 else [sum(rows)]

    def blocks(self, dims: ModelDims) -> list[Block]:
        rows = [dims.query_size, dims.key_value_size, dims.key_value_size]
        groups = dims.num_query_groups

        def interleave(parts: Sequence[Tensor]) -> Tensor:
            parts = parts if len(parts) == 3 else parts[0].split(rows)
            return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], dim=1).flatten(0, 1)

        def separate(tensor: Tensor) -> list[Tensor]:
            grouped = tensor.unflatten(0, (groups, -1)).split([size // groups for size in rows], dim=1)
            parts = [part.flatten(0, 1) for part in grouped]
            return parts if len(self.hf) == 3 else [torch.cat(parts)]

        return [Block(dims.qkv_size, tuple(range(len(self.hf))), interleave, separate)]
