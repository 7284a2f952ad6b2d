"""Megatron's `torch_dist` checkpoints, tensor by tensor, with torch.distributed.checkpoint alone.

No model is built and no process group started. The layout is that of megatron.core.dist_checkpointing 0.19:
parameters under Transformer Engine's names, layers stacked on the first axis, everything else (arguments,
iteration) pickled as the object `common_state`; older checkpoints keep that in common.pt.
"""

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import FileSystemWriter, metadata, planner
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _create_file_view
from tqdm import tqdm

from megatron_longrope2.checkpoint.mapping import LAYERS, TensorSpec
from megatron_longrope2.checkpoint.torch_archive import load_metadata, load_object, map_tensor, save_object
from megatron_longrope2.errors import InputError, one_line
from megatron_longrope2.rope import RopeFactors

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_COMMON = "common_state/shard_0_1"

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
class Part:
    """One layer of a stacked Megatron parameter, or the whole of another, made when it is written.

    Attributes:
        whole: the parameter, layers stacked.
        layer: which layer; None where the parameter is not stacked.
        make: the part itself, without the axis of the layers.
    """

    whole: TensorSpec
    layer: int | None
    make: Callable[[], Tensor]

    def item(self) -> planner.WriteItem:
        """What torch.distributed.checkpoint's table of contents is to say of it."""
        chunk = _chunk(self.whole, self.layer)
        data = planner.TensorWriteData(
            chunk, metadata.TensorProperties(dtype=self.whole.dtype), torch.Size(self.whole.shape)
        )
        index = metadata.MetadataIndex(self.whole.name, chunk.offsets)
        return planner.WriteItem(index, planner.WriteItemType.SHARD, tensor_data=data)

    def stacked(self) -> Tensor:
        """What is written."""
        return self.make() if self.layer is None else self.make()[None]


def _chunk(whole: TensorSpec, layer: int | None) -> metadata.ChunkStorageMetadata:
    first, *others = whole.shape
    offsets, rows = (0, first) if layer is None else (layer, 1)
    return metadata.ChunkStorageMetadata(
        torch.Size((offsets, *(0 for _ in others))), torch.Size((rows, *others))
    )


def write_checkpoint(folder: Path, parts: list[Part], args: Namespace) -> None:
    """Write a release checkpoint that `megatron.training.checkpointing.load_checkpoint` reads in any layout.

    Each part is let go as soon as it is written; torch's own writer keeps some until the file is complete.

    Args:
        folder: what `--load` will name; exists.
        parts: they fill their parameters.
        args: the model's arguments, for `--use-checkpoint-args`.

    Raises:
        InputError, OSError: whatever making or writing a tensor raised.
    """
    release = folder / RELEASE
    release.mkdir()
    objects = _objects(args)
    items = [part.item() for part in parts]
    items += [
        planner.WriteItem(metadata.MetadataIndex(name), planner.WriteItemType.BYTE_IO) for name in objects
    ]
    makers = [*(part.stacked for part in parts), *(partial(objects.get, name) for name in objects)]
    (plan,), contents = create_default_global_save_plan([planner.SavePlan(items)])
    results: list[WriteResult] = []
    file = "__0_0.distcp"
    with (release / file).open("wb") as stream:
        made = zip(plan.items, makers, strict=True)
        for item, make in tqdm(made, "to Megatron", len(items), unit="tensor"):
            begin = stream.tell()
            save_object(make(), stream)
            length = stream.tell() - begin
            results.append(WriteResult(item.index, length, _StorageInfo(file, begin, length)))
    FileSystemWriter(release).finish(contents, [results])
    (release / "metadata.json").write_text(
        json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}) + "\n"
    )
    (folder / TRACKER).write_text(RELEASE)


def _objects(args: Namespace) -> dict[str, list[Any]]:
    """What a checkpoint holds beside its parameters: lists of one shard."""
    common = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    empty = torch.empty(0, dtype=torch.uint8)
    names = [
        f"{LAYERS}{module}._extra_state/shard_{layer}_{args.num_layers}"
        for module in _LAYER_MODULES
        for layer in range(args.num_layers)
    ]
    names.append("decoder.final_layernorm._extra_state/shard_0_1")
    return {_COMMON: [common]} | {name: [empty] for name in names}


class MegatronTensors:
    """The parameters and arguments of a `torch_dist` checkpoint of any layout, read lazily.

    Attributes:
        folder: the checkpoint itself.
        metadata: its table of contents.
        specs: name to whole (stacked) tensor, of the model's tensors: no optimizer, no random state.
    """

    def __init__(self, load_dir: str | Path) -> None:
        """Find the latest checkpoint and read its metadata.

        Args:
            load_dir: a folder that `--save` named, or one checkpoint inside it (`release`, `iter_0000100`).

        Raises:
            InputError: no checkpoint there, another format, or damaged metadata.
        """
        self.folder = _checkpoint_folder(Path(load_dir))
        with _reading(self.folder / ".metadata"), (self.folder / ".metadata").open("rb") as file:
            self.metadata = load_metadata(file)
            self.specs = {
                name: TensorSpec(name, tuple(value.size), value.properties.dtype)
                for name, value in self.metadata.state_dict_metadata.items()
                if name.startswith(("embedding.", "decoder.", "output_layer."))
                and isinstance(value, metadata.TensorStorageMetadata)
            }

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

    @property
    def factors(self) -> RopeFactors | None:
        """The factors that the run trained with; None where it was not one of this package.

        Raises:
            InputError: they are damaged.
        """
        saved = getattr(self.args, "longrope2_factors", None)
        return saved and RopeFactors.from_dict(saved, source=f"{self.folder}: longrope2_factors")

    @property
    def rope_facts(self) -> dict[str, Any]:
        """What factors must have in common with the model (`RopeFactors.check_model`)."""
        rotary_dim = int(self.args.kv_channels * self.args.rotary_percent)
        return {"rope_base": self.args.rotary_base, "rotary_dim": rotary_dim}

    @cached_property
    def iteration(self) -> int:
        """Training iterations behind it (0 when it was converted)."""
        return int(self._common_state().get("iteration", 0))

    def file_sizes(self) -> dict[Path, int]:
        """The bytes that each file of the checkpoint has, or has at least."""
        sizes: dict[Path, int] = {}
        for place in self.metadata.storage_data.values():
            file = self.folder / place.relative_path
            sizes[file] = max(sizes.get(file, 0), place.offset + place.length)
        return sizes

    def _common_state(self) -> dict[str, Any]:
        with _reading(f"{self.folder}: common_state"):
            if (self.folder / "common.pt").exists():
                with (self.folder / "common.pt").open("rb") as file:
                    return load_object(file)
            info = self.metadata.storage_data[metadata.MetadataIndex(_COMMON)]
            with (self.folder / info.relative_path).open("rb") as file:
                return load_object(_create_file_view(file, info.offset, info.length))[0]

    def read(self, name: str, layer: int | None) -> Tensor:
        """One layer of a stacked tensor, or the whole of another: the file's own pages, if in one piece.

        Raises:
            InputError: its file is missing or damaged.
        """
        wanted = _chunk(self.specs[name], layer)
        items = create_read_items_for_chunk_list(name, self.metadata.state_dict_metadata[name], [wanted])
        if sum(torch.Size(item.lengths).numel() for item in items) != wanted.sizes.numel():
            raise InputError(f"{self.folder}: {name}: some parts are missing; the save was interrupted")
        if len(items) == 1:
            tensor = self._read(items[0])
        else:
            tensor = torch.empty(wanted.sizes, dtype=self.specs[name].dtype)
            for item in items:
                narrow_tensor_by_index(tensor, item.dest_offsets, item.lengths).copy_(self._read(item))
        return tensor if layer is None else tensor[0]

    def _read(self, item: planner.ReadItem) -> Tensor:
        info = self.metadata.storage_data[item.storage_index]
        path = self.folder / info.relative_path
        with _reading(f"{path}: {item.storage_index.fqn}"):
            chunk = map_tensor(path, info.offset, info.length)
        return narrow_tensor_by_index(chunk, item.storage_offsets, item.lengths)


@contextmanager
def _reading(what: object) -> Iterator[None]:
    """Say what is damaged, whatever reading it raises: a pickle of damaged bytes may raise anything."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{what}: missing or damaged ({one_line(error)}); copy it again") from error


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
