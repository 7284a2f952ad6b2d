"""How fast and how large the converters are, against a plain copy of the same files."""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_longrope2.checkpoint.export_hf import export_hf
from megatron_longrope2.checkpoint.hf_config import HFConfig
from megatron_longrope2.checkpoint.hf_files import TensorSpec, write_safetensors
from megatron_longrope2.checkpoint.import_hf import import_hf

_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_EMBEDDINGS_GB, _LAYER_GB = 0.262, 0.088


def write_random_model(folder: Path, gigabytes: float) -> int:
    """Write a Llama of TinyLlama's width, as deep as the size asks for, in shards of 500 MB; its bytes.

    Args:
        folder: new.
        gigabytes: about so large (at least 0.35).
    """
    folder.mkdir(parents=True)
    layers = max(1, round((gigabytes - _EMBEDDINGS_GB) / _LAYER_GB))
    (folder / "config.json").write_text(json.dumps(_CONFIG | {"num_hidden_layers": layers}))
    config = HFConfig.read(folder)
    dims = config.dims(padded_vocab_size=32000)
    specs = [
        TensorSpec(name, shape, torch.bfloat16)
        for mapping in config.mappings()
        for layer in range(layers if mapping.in_layers else 1)
        for name, shape in zip(mapping.hf_names(layer), mapping.hf_shapes(dims), strict=True)
    ]
    # Numbers of one tensor serve all: a converter does the same work whatever they are.
    numbers = torch.randn(max(torch.Size(spec.shape).numel() for spec in specs)).to(torch.bfloat16)
    tensors = ((spec.name, numbers[: torch.Size(spec.shape).numel()].view(spec.shape)) for spec in specs)
    write_safetensors(folder, specs, tensors, max_shard_bytes=500_000_000)
    return sum(spec.nbytes for spec in specs)


def measure_conversion(folder: Path, gigabytes: float = 2.0, rounds: int = 3) -> dict[str, Any]:
    """Convert a random model both ways and copy the same files, in turns; best times of all rounds.

    Args:
        folder: scratch space of about four times the size; removed again.
        gigabytes: the model's size.
        rounds: how often.

    Returns:
        `bytes`, `seconds` {import, export, copy_hf, copy_megatron}, `ratios` {import, export, speed_vs_copy:
        the smaller one}, each copy's time over the conversion's, and `peak_rss_bytes` of this process.
    """
    hf, megatron, scratch = folder / "hf", folder / "megatron", folder / "scratch"
    size = write_random_model(hf, gigabytes)
    import_hf(hf, megatron)
    work: dict[str, Callable[[], object]] = {
        "copy_hf": lambda: shutil.copytree(hf, scratch),
        "import": lambda: import_hf(hf, scratch),
        "copy_megatron": lambda: shutil.copytree(megatron, scratch),
        "export": lambda: export_hf(megatron, scratch),
    }
    best = dict.fromkeys(work, float("inf"))
    # The first round only touches the memory that later ones reuse.
    for _ in range(rounds + 1):
        for name, job in work.items():
            os.sync()
            start = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - start)
            shutil.rmtree(scratch)
    shutil.rmtree(folder)
    ratios = {"import": best["copy_hf"] / best["import"], "export": best["copy_megatron"] / best["export"]}
    return {
        "bytes": size,
        "seconds": best,
        "ratios": ratios | {"speed_vs_copy": min(ratios.values())},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
