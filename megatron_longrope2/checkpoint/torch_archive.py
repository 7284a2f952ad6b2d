"""What `torch.save` wrote, mapped instead of read: a tensor's bytes are touched when they are used.

`torch.load` maps whole files only; a `torch_dist` file holds many archives, and copying them costs several
times what the conversion does.
"""

import io
import mmap
import pickle
import struct
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

_ALLOWED: dict[tuple[str, str], Any] = {
    ("argparse", "Namespace"): Namespace,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): PosixPath,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("types", "SimpleNamespace"): SimpleNamespace,
}


class Unread:
    """Stands for an object of a class that a converter has no use for (Megatron's enumerations, ...)."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Unpickler(pickle.Unpickler):
    """Makes plain values, namespaces and tensors; the rest becomes `Unread`, and no code of a file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _ALLOWED.get((module, name), Unread)


class _MetadataUnpickler(Unpickler):
    """Also makes what torch.distributed.checkpoint keeps in .metadata."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"):
            return pickle.Unpickler.find_class(self, module, name)
        if (module, name) in (("torch", "Size"), ("torch.serialization", "_get_layout")):
            return pickle.Unpickler.find_class(self, module, name)
        return super().find_class(module, name)


def load_metadata(file: IO[bytes]) -> Metadata:
    """The table of contents of a `torch_dist` checkpoint.

    Raises:
        Exception: damaged; unpickling may raise anything.
    """
    metadata = _MetadataUnpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError("not a table of contents")
    return metadata


def load(*_: Any, **__: Any) -> Any:
    """What torch.load would call for its format of before 2020, which runs code."""
    raise pickle.UnpicklingError("not in torch.save's zip format; the file is damaged")


def load_object(file: IO[bytes]) -> Any:
    """Plain values and tensors that `torch.save` wrote to `file`, without importing Megatron.

    Raises:
        OSError, RuntimeError, EOFError, pickle.UnpicklingError: damaged.
    """
    # torch.load asks a module for `Unpickler` and `load`; this one is enough.
    return torch.load(file, map_location="cpu", pickle_module=sys.modules[__name__], weights_only=False)


class _LayoutUnpickler(pickle.Unpickler):
    """Reads a tensor's place in its storage instead of the tensor."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ARG002
        if name == "_rebuild_tensor_v2":
            return lambda _storage, offset, size, stride, *_: (offset, size, stride)
        return Unread

    def persistent_load(self, pid: Any) -> Any:
        return pid


def map_tensor(path: Path, begin: int, length: int, dtype: torch.dtype) -> Tensor:
    """The tensor of one archive inside a file, on the file's own pages: not to be written to.

    Args:
        path: the file.
        begin, length: where the archive stands in it, bytes.
        dtype: what was saved.

    Raises:
        OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError: missing or damaged.
    """
    slack = begin % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        # All pages at once: a fault for each would cost as much as reading them.
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        pages = mmap.mmap(file.fileno(), length + slack, flags, mmap.PROT_READ, offset=begin - slack)
    records = {}
    with zipfile.ZipFile(pages) as archive:  # type: ignore[call-overload]
        for info in archive.infolist():
            name = info.filename.split("/", 1)[1]
            # The data follows the local header, whose padding only it knows.
            name_length, extra_length = struct.unpack_from("<HH", pages, info.header_offset + 26)
            records[name] = (info.header_offset + 30 + name_length + extra_length, info.file_size)
    start, size = records["data.pkl"]
    offset, shape, stride = _LayoutUnpickler(io.BytesIO(pages[start : start + size])).load()
    start, size = records["data/0"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        storage = torch.frombuffer(pages, dtype=dtype, count=size // dtype.itemsize, offset=start)
    return storage.as_strided(shape, stride, offset)
