"""Megatron's `torch_dist` checkpoints, tensor by tensor, with torch.distributed.checkpoint alone.

No model is built and no process group started. The layout is that of megatron.core.dist_checkpointing 0.19:
parameters under Transformer Engine's names, layers stacked on the first axis, everything else (arguments,
iteration) pickled as the object `common_state`; older checkpoints keep that in common.pt.
"""

import io
import json
import pickle
import struct
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_longrope2.checkpoint.mapping import LAYERS, Shape
from megatron_longrope2.checkpoint.pieces import Pieces
from megatron_longrope2.checkpoint.torch_archive import load_metadata, load_object, map_tensor
from megatron_longrope2.errors import InputError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_COMMON = "common_state/shard_0_1"
_FILE_BYTES = 4_000_000_000
# What reading a missing, cut off or overwritten file may raise.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError)

# Modules whose (empty) extra state both layer specs look for when they load; Transformer Engine keeps its
# scaling factors there when it trains in 8 bits.
_LAYER_MODULES = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.core_attention",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


@dataclass(frozen=True)
class Chunk:
    """A part of a Megatron parameter, made when it is written."""

    size: Shape
    make: Callable[[], Tensor]


@dataclass(frozen=True)
class Stack:
    """A Megatron parameter to be written; its chunks, by their offsets, fill it."""

    shape: Shape
    dtype: torch.dtype
    chunks: dict[Shape, Chunk]


class _Chunked(Tensor):
    """A tensor that torch.distributed.checkpoint sees chunk by chunk (its `_Checkpointable` protocol)."""

    @staticmethod
    def __new__(cls, stack: Stack) -> "_Chunked":
        return torch.Tensor._make_wrapper_subclass(cls, torch.Size(stack.shape), dtype=stack.dtype)

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        chunks = self._stack.chunks.items()
        return [ChunkStorageMetadata(torch.Size(offset), torch.Size(chunk.size)) for offset, chunk in chunks]

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=self._stack.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, torch.Size(self._stack.shape)),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._stack.chunks[tuple(index.offset)].make()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{cls.__name__} only describes a tensor; it cannot compute {func}")


class _StreamingWriter(FileSystemWriter):
    """Lets every tensor go as soon as it is written; the base class keeps some until a file is complete."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: list[WriteResult] = []
        made = ((item, planner.resolve_data(item)) for item in plan.items)
        while len(results) < len(plan.items):
            results += self._write_file(f"__0_{len(results)}.distcp", made)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def _write_file(self, name: str, made: Iterator[tuple[WriteItem, Any]]) -> list[WriteResult]:
        """Write items until the file is full or they end."""
        results: list[WriteResult] = []
        with self.fs.create_stream(Path(self.path) / name, "wb") as stream:
            for item, data in made:
                begin = stream.tell()
                if isinstance(data, io.BytesIO):
                    stream.write(data.getbuffer())
                else:
                    _save(data, stream)
                length = stream.tell() - begin
                results.append(WriteResult(item.index, length, _StorageInfo(name, begin, length)))
                if stream.tell() >= _FILE_BYTES:
                    break
        return results


def _save(tensor: Tensor, stream: Any) -> None:
    try:
        # Nothing reads the archive's checksum, and making it would take most of the time.
        torch.serialization.set_crc32_options(False)
        torch.save(_own_storage(tensor), Pieces(stream))
    except RuntimeError as error:
        # torch reports a full disk as an inconsistency of its archive.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    finally:
        torch.serialization.set_crc32_options(True)


def _own_storage(tensor: Tensor) -> Tensor:
    """The tensor on a storage of its own size, without a copy: torch.save writes the whole storage."""
    tensor = tensor.detach().contiguous()
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    flat = tensor.flatten().view(torch.uint8)
    return torch.from_numpy(flat.numpy()).view(tensor.dtype).view(tensor.shape)


def write_checkpoint(folder: Path, stacks: dict[str, Stack], args: Namespace) -> None:
    """Write a release checkpoint that `megatron.training.checkpointing.load_checkpoint` reads in any layout.

    Args:
        folder: what `--load` will name; exists.
        stacks: Megatron name to parameter.
        args: the model's arguments, for `--use-checkpoint-args`.

    Raises:
        InputError, OSError: whatever making or writing a tensor raised.
    """
    release = folder / RELEASE
    release.mkdir()
    state: dict[str, Any] = {name: _Chunked(stack) for name, stack in stacks.items()}
    common = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    # Objects are lists of shards, one shard here.
    state[_COMMON] = [common]
    empty = torch.empty(0, dtype=torch.uint8)
    for module in _LAYER_MODULES:
        for layer in range(args.num_layers):
            state[f"{LAYERS}{module}._extra_state/shard_{layer}_{args.num_layers}"] = [empty]
    state["decoder.final_layernorm._extra_state/shard_0_1"] = [empty]
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(
                state,
                storage_writer=_StreamingWriter(release, sync_files=False),
                planner=planner,
                no_dist=True,
            )
    except dcp.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
    (release / "metadata.json").write_text(
        json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}) + "\n"
    )
    (folder / TRACKER).write_text(RELEASE)


class MegatronTensors:
    """The parameters and arguments of a `torch_dist` checkpoint of any layout, read lazily."""

    def __init__(self, load_dir: str | Path) -> None:
        """Find the latest checkpoint and read its metadata.

        Args:
            load_dir: a folder that `--save` named, or one checkpoint inside it (`release`, `iter_0000100`).

        Raises:
            InputError: no checkpoint there, another format, or damaged metadata.
        """
        self.folder = _checkpoint_folder(Path(load_dir))
        try:
            with (self.folder / ".metadata").open("rb") as file:
                metadata = load_metadata(file)
        except Exception as error:
            raise InputError(f"{self.folder / '.metadata'}: cannot be read: {error}") from error
        self._tensors = {
            name: value
            for name, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
        }
        self._metadata = metadata

    @cached_property
    def args(self) -> Namespace:
        """The arguments of the run that saved it.

        Raises:
            InputError: there are none.
        """
        common = self._common_state()
        if not isinstance(common.get("args"), Namespace):
            raise InputError(f"{self.folder}: args: missing; only checkpoints saved with arguments convert")
        return common["args"]

    @cached_property
    def iteration(self) -> int:
        """Training iterations behind it (0 when it was converted)."""
        return int(self._common_state().get("iteration", 0))

    def file_sizes(self) -> dict[Path, int]:
        """The bytes that each file of the checkpoint has, or has at least."""
        sizes: dict[Path, int] = {}
        for place in self._metadata.storage_data.values():
            file = self.folder / place.relative_path
            sizes[file] = max(sizes.get(file, 0), place.offset + place.length)
        return sizes

    def _common_state(self) -> dict[str, Any]:
        try:
            if (self.folder / "common.pt").exists():
                with (self.folder / "common.pt").open("rb") as file:
                    return load_object(file)
            info = self._metadata.storage_data[MetadataIndex(_COMMON)]
            with (self.folder / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                return load_object(io.BytesIO(file.read(info.length)))[0]
        except (*_DAMAGED, RuntimeError) as error:
            raise InputError(f"{self.folder}: common_state: cannot be read: {error}") from error

    def names(self) -> set[str]:
        """Names of the model's tensors: no optimizer, no random state."""
        return {
            name for name in self._tensors if name.startswith(("embedding.", "decoder.", "output_layer."))
        }

    def shape(self, name: str) -> Shape:
        """Shape of a whole (stacked) tensor."""
        return tuple(self._tensors[name].size)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype it was saved in."""
        return self._tensors[name].properties.dtype

    def read(self, name: str, layer: int | None, row: int, rows: int) -> Tensor:
        """Some rows of a tensor, or of one layer of a stacked one: the file's own pages, if in one piece.

        Raises:
            InputError: its file is missing or damaged.
        """
        shape, dtype = self.shape(name), self.dtype(name)
        if layer is None:
            offset, size = (row, *(0,) * (len(shape) - 1)), (rows, *shape[1:])
        else:
            offset, size = (layer, row, *(0,) * (len(shape) - 2)), (1, rows, *shape[2:])
        wanted = ChunkStorageMetadata(torch.Size(offset), torch.Size(size))
        items = create_read_items_for_chunk_list(name, self._tensors[name], [wanted])
        if sum(torch.Size(item.lengths).numel() for item in items) != torch.Size(size).numel():
            raise InputError(f"{self.folder}: {name}: some parts are missing; the save was interrupted")
        if len(items) == 1:
            tensor = self._read(items[0], dtype)
        else:
            tensor = torch.empty(size, dtype=dtype)
            for item in items:
                narrow_tensor_by_index(tensor, item.dest_offsets, item.lengths).copy_(self._read(item, dtype))
        return tensor if layer is None else tensor[0]

    def _read(self, item: ReadItem, dtype: torch.dtype) -> Tensor:
        info = self._metadata.storage_data[item.storage_index]
        path = self.folder / info.relative_path
        try:
            chunk = map_tensor(path, info.offset, info.length, dtype)
        except (*_DAMAGED, zipfile.BadZipFile, struct.error) as error:
            raise InputError(
                f"{path}: {item.storage_index.fqn}: missing or damaged data ({error}); copy it again"
            ) from error
        return narrow_tensor_by_index(chunk, item.storage_offsets, item.lengths)


def _checkpoint_folder(load_dir: Path) -> Path:
    folder = load_dir
    tracker = load_dir / TRACKER
    if tracker.exists():
        step = tracker.read_text().strip()
        if step != RELEASE and not step.isdigit():
            raise InputError(f"{tracker}: {step!r} is neither a number nor {RELEASE!r}")
        folder = load_dir / (RELEASE if step == RELEASE else f"iter_{int(step):07d}")
    if not (folder / ".metadata").is_file():
        raise InputError(
            f"{folder}: no torch_dist checkpoint there ({TRACKER} or .metadata is missing); "
            "give the folder that --save named"
        )
    return folder
