"""Safetensors files of a Hugging Face model folder: tensors in and out, one at a time."""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_longrope2.checkpoint.mapping import TensorSpec
from megatron_longrope2.checkpoint.torch_archive import Pieces
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# The dtypes that weights have, and what safetensors calls them.
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_FROM_NAME = {name: dtype for dtype, name in DTYPES.items()}


class HFTensors:
    """The tensors of a Hugging Face folder, read lazily: a file is mapped for one tensor at a time.

    Attributes:
        folder: the folder.
        specs: name to shape and dtype.
        files: name to the file that holds it.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the headers.

        Args:
            folder: holds model.safetensors, or model.safetensors.index.json and the files that it names.

        Raises:
            InputError: no such files, or one that is truncated or damaged.
        """
        self.folder = Path(folder)
        self.specs: dict[str, TensorSpec] = {}
        self.files: dict[str, Path] = {}
        for path in _weight_files(self.folder):
            for spec in _header(path):
                self.specs[spec.name] = spec
                self.files[spec.name] = path

    def __getitem__(self, name: str) -> Tensor:
        with _opened(self.files[name]) as file:
            return file.get_tensor(name)


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a Hugging Face model folder")
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{folder / INDEX}: weight_map: missing; download the model again")
        files = [folder / name for name in sorted(set(weight_map.values()))]
    elif (folder / SINGLE).exists():
        files = [folder / SINGLE]
    else:
        raise InputError(
            f"{folder}: neither {SINGLE} nor {INDEX} is there; save weights in other formats as safetensors"
        )
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: named in {INDEX} but missing; download it again")
    return files


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or truncated ({error}); download it again") from error


def _header(path: Path) -> Iterator[TensorSpec]:
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            part = file.get_slice(name)
            dtype = part.get_dtype()
            if dtype not in _FROM_NAME:
                raise InputError(
                    f"{path}: {name}: dtype {dtype} is not supported; "
                    f"save the model in one of {', '.join(_FROM_NAME)}"
                )
            yield TensorSpec(name, tuple(part.get_shape()), _FROM_NAME[dtype])


def write_safetensors(
    folder: Path, specs: list[TensorSpec], tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> None:
    """Write tensors into sharded safetensors files, with an index where there is more than one file.

    Each tensor is written when it comes and never kept; the library's own writer wants all tensors of a file
    in memory.

    Args:
        folder: exists.
        specs: every tensor that will come.
        tensors: names and tensors, in any order; dtypes and shapes as in `specs`.
        max_shard_bytes: upper bound of a file's size (counting its tensors only).

    Raises:
        OSError: no space.
    """
    by_name = {spec.name: spec for spec in specs}
    shards = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda spec: spec.nbytes,
        get_storage_id=lambda _: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    place: dict[str, tuple[Path, int]] = {}
    for file, names in shards.filename_to_tensors.items():
        starts = _write_header(folder / file, [by_name[name] for name in names])
        place |= {name: (folder / file, start) for name, start in starts}
    for name, tensor in tensors:
        path, offset = place[name]
        with path.open("r+b") as stream:
            stream.seek(offset)
            Pieces(stream).write(tensor.contiguous().flatten().view(torch.uint8).numpy())
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_header(path: Path, specs: list[TensorSpec]) -> list[tuple[str, int]]:
    """Write the header of a file; return each tensor's place in it, bytes from the file's start."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # Wide dtypes first keeps every tensor aligned to its own width.
    for spec in sorted(specs, key=lambda spec: -spec.dtype.itemsize):
        begin, end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    start = 8 + len(text)
    return [(spec.name, start + header[spec.name]["data_offsets"][0]) for spec in specs]
