"""How a Megatron tensor corresponds to tensors of a Hugging Face model: the mappings that tables use.

Megatron keeps the layers of a `torch_dist` checkpoint stacked: one tensor a name, [layers, ...]. A mapping
describes one layer's slice of it (or a tensor outside the layers) and moves no data but its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megatron_longrope2.model.dims import ModelDims

LAYERS = "decoder.layers."
"""Prefix of the Megatron names that are stacked over layers."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Some whole rows of a Megatron tensor, which are converted without the others."""

    rows: int
    sources: tuple[int, ...]
    """Which of a mapping's Hugging Face tensors it is made of."""
    make: Callable[[list[Tensor]], Tensor]
    """The rows, from those tensors; a view of one where possible."""
    split: Callable[[Tensor], Sequence[Tensor]] | None
    """Those tensors, from the rows; None where the rows hold nothing of them."""


def _same_rows(rows: int, source: int) -> Block:
    return Block(rows, (source,), lambda parts: parts[0], lambda tensor: (tensor,))


@dataclass(frozen=True)
class Mapping(ABC):
    """One Megatron name and the Hugging Face names that hold the same numbers."""

    megatron: str
    """Name in a `torch_dist` checkpoint (Transformer Engine's names, whichever layer spec trained it)."""

    @property
    def in_layers(self) -> bool:
        """Whether there is one of it a layer."""
        return self.megatron.startswith(LAYERS)

    @property
    @abstractmethod
    def hf(self) -> tuple[str, ...]:
        """Hugging Face names, with `{layer}` where the layer's number stands."""

    @abstractmethod
    def megatron_shape(self, dims: ModelDims) -> Shape:
        """Shape of one layer's Megatron tensor."""

    @abstractmethod
    def hf_shapes(self, dims: ModelDims) -> tuple[Shape, ...]:
        """Shapes of the Hugging Face tensors, in the order of `hf`."""

    @abstractmethod
    def blocks(self, dims: ModelDims) -> list[Block]:
        """The Megatron tensor from first row to last; together they split into all of `hf`, in order."""

    def to_megatron(self, parts: list[Tensor], dims: ModelDims) -> Tensor:
        """The whole Megatron tensor from the Hugging Face tensors, in the order of `hf`."""
        return torch.cat([block.make([parts[n] for n in block.sources]) for block in self.blocks(dims)])

    def to_hf(self, tensor: Tensor, dims: ModelDims) -> list[Tensor]:
        """The Hugging Face tensors, in the order of `hf`, from the whole Megatron tensor."""
        blocks = self.blocks(dims)
        rows = tensor.split([block.rows for block in blocks])
        pairs = zip(blocks, rows, strict=True)
        return [part for block, some in pairs if block.split is not None for part in block.split(some)]

    def hf_names(self, layer: int) -> tuple[str, ...]:
        """Hugging Face names of one layer (`layer` is ignored outside the layers)."""
        return tuple(name.format(layer=layer) for name in self.hf)


@dataclass(frozen=True)
class Direct(Mapping):
    """The same tensor under another name."""

    name: str
    shape: tuple[str, ...]
    """Names of `ModelDims` attributes, one a dimension."""

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.name,)

    def megatron_shape(self, dims: ModelDims) -> Shape:
        return tuple(getattr(dims, size) for size in self.shape)

    def hf_shapes(self, dims: ModelDims) -> tuple[Shape, ...]:
        return (self.megatron_shape(dims),)

    def blocks(self, dims: ModelDims) -> list[Block]:
        return [_same_rows(self.megatron_shape(dims)[0], 0)]


@dataclass(frozen=True)
class Vocabulary(Mapping):
    """A row a token: Megatron pads with zero rows, so that tensor parallel ranks get equal shares."""

    name: str

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.name,)

    def megatron_shape(self, dims: ModelDims) -> Shape:
        return (dims.padded_vocab_size, dims.hidden_size)

    def hf_shapes(self, dims: ModelDims) -> tuple[Shape, ...]:
        return ((dims.vocab_size, dims.hidden_size),)

    def blocks(self, dims: ModelDims) -> list[Block]:
        padding = dims.vocab_padding
        rows = _same_rows(dims.vocab_size, 0)
        # Made of the rows only to have their dtype.
        zeros = Block(padding, (0,), lambda parts: parts[0].new_zeros(padding, dims.hidden_size), None)
        return [rows, zeros] if padding else [rows]


@dataclass(frozen=True)
class GatedMLP(Mapping):
    """Megatron's first MLP layer: the gate's rows, then the up projection's."""

    gate: str
    up: str
    columns: tuple[str, ...] = ("hidden_size",)
    """Dimensions after the rows; none for a bias."""

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.gate, self.up)

    def megatron_shape(self, dims: ModelDims) -> Shape:
        return (dims.gate_up_size, *(getattr(dims, size) for size in self.columns))

    def hf_shapes(self, dims: ModelDims) -> tuple[Shape, ...]:
        shape = (dims.ffn_hidden_size, *self.megatron_shape(dims)[1:])
        return (shape, shape)

    def blocks(self, dims: ModelDims) -> list[Block]:
        return [_same_rows(dims.ffn_hidden_size, part) for part in (0, 1)]


@dataclass(frozen=True)
class QKV(Mapping):
    """Megatron's fused attention input: for each key-value group its queries' heads, its key, its value.

    Nothing is permuted inside a head: both sides rotate halves (`rotary_interleaved` is False).
    """

    query: str
    key: str
    value: str
    columns: tuple[str, ...] = ("hidden_size",)
    """Dimensions after the rows; none for a bias."""

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.query, self.key, self.value)

    def megatron_shape(self, dims: ModelDims) -> Shape:
        return (dims.qkv_size, *(getattr(dims, size) for size in self.columns))

    def hf_shapes(self, dims: ModelDims) -> tuple[Shape, ...]:
        columns = self.megatron_shape(dims)[1:]
        return tuple((rows, *columns) for rows in _qkv_rows(dims))

    def blocks(self, dims: ModelDims) -> list[Block]:
        return [Block(dims.qkv_size, (0, 1, 2), partial(_interleave, dims), partial(_separate, dims))]


@dataclass(frozen=True)
class FusedQKV(Mapping):
    """`QKV`, from one Hugging Face tensor that holds all queries, then all keys, then all values (Phi3)."""

    name: str

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.name,)

    def megatron_shape(self, dims: ModelDims) -> Shape:
        return (dims.qkv_size, dims.hidden_size)

    def hf_shapes(self, dims: ModelDims) -> tuple[Shape, ...]:
        return (self.megatron_shape(dims),)

    def blocks(self, dims: ModelDims) -> list[Block]:
        def interleave(parts: list[Tensor]) -> Tensor:
            return _interleave(dims, parts[0].split(_qkv_rows(dims)))

        def separate(tensor: Tensor) -> list[Tensor]:
            return [torch.cat(_separate(dims, tensor))]

        return [Block(dims.qkv_size, (0,), interleave, separate)]


def _qkv_rows(dims: ModelDims) -> list[int]:
    return [dims.query_size, dims.key_value_size, dims.key_value_size]


def _interleave(dims: ModelDims, parts: Sequence[Tensor]) -> Tensor:
    groups = [part.unflatten(0, (dims.num_query_groups, -1)) for part in parts]
    return torch.cat(groups, dim=1).flatten(0, 1)


def _separate(dims: ModelDims, tensor: Tensor) -> list[Tensor]:
    grouped = tensor.unflatten(0, (dims.num_query_groups, -1))
    rows = [size // dims.num_query_groups for size in _qkv_rows(dims)]
    return [part.flatten(0, 1) for part in grouped.split(rows, dim=1)]
