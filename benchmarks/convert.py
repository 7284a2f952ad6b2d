"""Time conversion from Hugging Face to Megatron and back against a plain copy of the same files.

Conversions and copies take turns on a random Llama in bfloat16; the best time of each counts.
`speed_vs_copy` is the smaller ratio of the two directions, wall clock; the `cpu` ratios leave out what other
processes take of the cores. `peak_rss_bytes` is the largest memory of this process.
"""

import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from cyclopts.types import PositiveFloat, PositiveInt
from transformers import LlamaConfig

from benchmarks.measuring import Measurement, Output
from megatron_longrope2.checkpoint.conversion import export_hf, import_hf
from megatron_longrope2.checkpoint.hf_config import HFConfig
from megatron_longrope2.checkpoint.hf_files import write_safetensors
from megatron_longrope2.checkpoint.mapping import TensorSpec
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings

_EMBEDDINGS_GB, _LAYER_GB = 0.262, 0.088


def write_random_model(folder: Path, gigabytes: float) -> int:
    """Write a Llama of TinyLlama's width, as deep as the size asks for, in shards of 500 MB; its bytes.

    Args:
        folder: new.
        gigabytes: about so large (at least 0.35).
    """
    folder.mkdir(parents=True)
    layers = max(1, round((gigabytes - _EMBEDDINGS_GB) / _LAYER_GB))
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_key_value_heads=4,
        dtype="bfloat16",
    ).save_pretrained(folder)
    specs = [TensorSpec(name, shape, torch.bfloat16) for name, shape, _ in HFConfig.read(folder).tensors()]
    # Numbers of one tensor serve all: a converter does the same work whatever they are.
    numbers = torch.empty(
        max(torch.Size(spec.shape).numel() for spec in specs), dtype=torch.bfloat16
    ).uniform_()
    tensors = ((spec.name, numbers[: torch.Size(spec.shape).numel()].view(spec.shape)) for spec in specs)
    write_safetensors(folder, specs, tensors, max_shard_bytes=500_000_000)
    return sum(spec.nbytes for spec in specs)


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Size and repetitions.

    Attributes:
        gigabytes: The size of the model, at least 0.35.
        repeats: How often each is measured; the fastest counts.
        folder: A folder where four times the size is free; without it the temporary folder is used.
    """

    gigabytes: PositiveFloat = 2.0
    repeats: PositiveInt = 5
    folder: Path | None = None


def measure(*, settings: Settings) -> Measurement:
    """Make the model, then convert and copy it in turns."""
    with TemporaryDirectory(dir=settings.folder) as name:
        hf, megatron, scratch = (Path(name) / part for part in ("hf", "megatron", "scratch"))
        size = write_random_model(hf, settings.gigabytes)
        import_hf(ImportSettings(hf, megatron))
        work: dict[str, Callable[[], object]] = {
            "copy_hf": lambda: shutil.copytree(hf, scratch),
            "import": lambda: import_hf(ImportSettings(hf, scratch)),
            "copy_megatron": lambda: shutil.copytree(megatron, scratch),
            "export": lambda: export_hf(ExportSettings(megatron, scratch)),
        }
        rounds = [
            {name: _seconds(job, hf, scratch) for name, job in work.items()} for _ in range(settings.repeats)
        ]
    wall, cpu = ({name: min(r[name][clock] for r in rounds) for name in work} for clock in (0, 1))
    ratios = {"import": wall["copy_hf"] / wall["import"], "export": wall["copy_megatron"] / wall["export"]}
    return Measurement(
        settings,
        ratios={
            "speed_vs_copy": min(ratios.values()),
            **ratios,
            "import_cpu": cpu["copy_hf"] / cpu["import"],
            "export_cpu": cpu["copy_megatron"] / cpu["export"],
        },
        measured={
            "bytes": size,
            "seconds": wall,
            "cpu_seconds": cpu,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
    )


def _seconds(job: Callable[[], object], model: Path, scratch: Path) -> tuple[float, float]:
    """Wall clock and processor time of a job that writes `scratch`, which is removed.

    A copy of the model is made and removed first: a virtual machine that has given memory back takes several
    times as long to fill new pages, whoever writes them.
    """
    shutil.copytree(model, scratch)
    os.sync()
    shutil.rmtree(scratch)
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    shutil.rmtree(scratch)
    return spent
