"""What `torch.save` writes: written in pieces, and read without running code of the file.

A tensor is mapped instead of read: its bytes are touched when they are used. `torch.load` maps whole files
only; a `torch_dist` file holds many archives, and copying them costs several times what the conversion does.
"""

import pickle
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import torch
import torch.distributed.checkpoint.metadata as dcp
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.distributed.checkpoint.filesystem import _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.utils import _create_file_view
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

_PIECE = 1 << 20


class Pieces:
    """A binary stream whose writes are cut into pieces of a megabyte.

    One write call of a whole tensor keeps the kernel busy several times as long as the same bytes a megabyte
    at a time (measured on Linux with ext4, 2 GB: 3.9 s of system time against 0.7 s).
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        """Write all of a bytes-like object; its size, bytes."""
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), _PIECE):
            self._stream.write(view[begin : begin + _PIECE])
        return len(view)

    def flush(self) -> None:
        """Hand on what the stream has buffered."""
        self._stream.flush()


def save_object(value: Any, stream: IO[bytes]) -> None:
    """Write a tensor or another object as `torch.save` does.

    Raises:
        OSError: the disk is full.
    """
    if isinstance(value, Tensor):
        # On a storage of its own size, without a copy: torch.save writes the whole storage.
        flat = value.detach().contiguous().flatten().view(torch.uint8)
        value = torch.from_numpy(flat.numpy()).view(value.dtype).view(value.shape)
    try:
        # Nothing reads the archive's checksum, and making it would take most of the time.
        torch.serialization.set_crc32_options(False)
        torch.save(value, Pieces(stream))
    except RuntimeError as error:
        # torch reports a failed write to the stream as an inconsistency of its archive.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    finally:
        torch.serialization.set_crc32_options(True)


class Unread:
    """Stands for an object of a class that a converter has no use for (Megatron's enumerations, ...)."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_object(file: IO[bytes]) -> Any:
    """Plain values, namespaces and tensors that `torch.save` wrote; objects of other classes are `Unread`.

    Raises:
        Exception: the file is damaged; unpickling may raise anything.
    """
    with safe_globals([Namespace, PosixPath, SimpleNamespace]):
        others = get_unsafe_globals_in_checkpoint(file)
        file.seek(0)
        with safe_globals([(Unread, name) for name in others]):
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                # torch's own words advise to load it by running its code.
                raise pickle.UnpicklingError("not plain values and tensors") from error


class _Unpickler(pickle.Unpickler):
    """Makes what `known` names (module and name to class or function); the rest becomes `Unread`."""

    def __init__(self, file: IO[bytes], known: Mapping[tuple[str, str], Callable[..., Any]]) -> None:
        super().__init__(file)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return self._known.get((module, name), Unread)


_METADATA: dict[tuple[str, str], Any] = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (
        *(dcp.Metadata, dcp.MetadataIndex, dcp.StorageMeta, _StorageInfo, _StoragePrefix),
        *(dcp.TensorStorageMetadata, dcp.BytesStorageMetadata, dcp.ChunkStorageMetadata),
        *(dcp.TensorProperties, dcp._MEM_FORMAT_ENCODING, torch.serialization._get_layout),
        *(torch.Size, PosixPath),
    )
}


def load_metadata(file: IO[bytes]) -> dcp.Metadata:
    """The table of contents of a `torch_dist` checkpoint.

    Raises:
        Exception: the file is damaged; unpickling may raise anything.
    """
    metadata = _Unpickler(file, _METADATA).load()
    if not isinstance(metadata, dcp.Metadata):
        raise pickle.UnpicklingError("not a table of contents")
    return metadata


def map_tensor(path: Path, begin: int, length: int) -> Tensor:
    """The tensor of one archive inside a file, on the file's own pages: what is written to it is not kept.

    Args:
        path: the file.
        begin, length: where the archive stands in it, bytes.

    Raises:
        Exception: the file is missing or damaged; unpickling may raise anything.
    """
    with path.open("rb") as file, FakeTensorMode():
        fake = torch.load(_create_file_view(file, begin, length), map_location="cpu", weights_only=True)
    storage = fake.untyped_storage()
    pages = np.memmap(path, np.uint8, "c", begin + storage._checkpoint_offset, storage.nbytes())
    return (
        torch.from_numpy(pages).view(fake.dtype).as_strided(fake.shape, fake.stride(), fake.storage_offset())
    )
