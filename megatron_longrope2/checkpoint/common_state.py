"""The pickled part of a Megatron checkpoint, read without importing Megatron and without running its code."""

import pickle
import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import PosixPath
from types import SimpleNamespace
from typing import IO, Any

import torch

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


def load(*_: Any, **__: Any) -> Any:
    """What torch.load would call for its format of before 2020, which runs code."""
    raise pickle.UnpicklingError("not in torch.save's zip format; the file is damaged")


def load_state(file: IO[bytes]) -> Any:
    """What `torch.save` wrote to `file`.

    Raises:
        OSError, RuntimeError, EOFError, pickle.UnpicklingError: damaged.
    """
    # torch.load asks a module for `Unpickler` and `load`; this one is enough.
    return torch.load(file, map_location="cpu", pickle_module=sys.modules[__name__], weights_only=False)
