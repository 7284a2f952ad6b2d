"""Result files: what was measured, on what, how, and with which versions."""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from megatron_longrope2 import __version__
from megatron_longrope2.device import has_gpu
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.subject import Subject
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.rope.hf import factors_from_hf, read_hf_config

FORMAT = "longrope2-evaluation/1"
KINDS = ("needle", "perplexity", "ruler", "lm_eval")
Records = Mapping[str, Mapping[str, Any]]
"""A checkpoint's records by kind, as `read_records` gives them."""
PACKAGES = ("torch", "megatron-core", "transformers", "numpy", "lm_eval")


def provenance() -> dict[str, Any]:
    """Command, versions and device of this process."""
    versions = {"megatron_longrope2": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": shlex.join(sys.argv),
        "versions": versions,
        "device": torch.cuda.get_device_name() if has_gpu() else platform.processor() or platform.machine(),
    }


def describe(subject: Subject, beyond: Sequence[int]) -> dict[str, Any]:
    """What a record says of its checkpoint; `beyond` are the lengths outside its window."""
    return {
        "checkpoint": subject.source,
        "method": subject.method,
        "original_length": subject.original_length,
        "target_length": subject.target_length,
        "beyond_window": list(beyond),
    }


def describe_folder(folder: str | Path) -> dict[str, Any]:
    """`describe` for a Hugging Face folder whose model is not loaded here.

    Raises:
        InputError: config.json cannot be read.
    """
    config = read_hf_config(folder)
    factors = factors_from_hf(config, str(folder))
    window = int(config["max_position_embeddings"])
    return {
        "checkpoint": str(folder),
        "method": factors.method if factors else "none",
        "original_length": factors.original_length if factors else window,
        "target_length": factors.target_length if factors else window,
        "beyond_window": [],
    }


def write_record(
    folder: str | Path,
    kind: str,
    subject: Mapping[str, Any],
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    seconds: float,
) -> Path:
    """Write `folder`/`kind`.json whole.

    Args:
        kind: one of KINDS.
        subject: from `describe`.
        settings: what decided the result besides the checkpoint (seed, lengths, ...).
        seconds: wall-clock time.
    """
    path = Path(folder) / f"{kind}.json"
    record = {"format": FORMAT, "kind": kind, **subject, "settings": dict(settings), "seconds": seconds}
    write_json(path, {**record, **provenance(), "result": dict(result)})
    return path


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The records of a folder, by kind.

    Raises:
        InputError: there is none, or one is not ours.
    """
    records = {}
    for kind in KINDS:
        path = Path(folder) / f"{kind}.json"
        if not path.exists():
            continue
        record = read_json(path)
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("kind") != kind:
            raise InputError(f"{path}: format: not {FORMAT!r} of kind {kind!r}; measure it again")
        records[kind] = record
    if not records:
        names = ", ".join(f"{kind}.json" for kind in KINDS)
        raise InputError(f"{folder}: no results there ({names}); give a folder that an evaluation wrote")
    return records
