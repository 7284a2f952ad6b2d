"""Everything that can be known to be wrong before a stage starts, all of it at once.

`python -m megatron_longrope2.launch.preflight RUN STAGE` runs on every node of a job in its first seconds,
and exits with 2 if it finds something.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from megatron_longrope2.data.tokenizer import check_tokenizer
from megatron_longrope2.errors import InputError, run_main
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.launch.commands import factors_file
from megatron_longrope2.launch.settings import NEEDS, Settings, StageSettings, load_settings
from megatron_longrope2.rope import load_factors
from megatron_longrope2.rope.hf import HfRope, read_hf_config, read_hf_rope

PACKAGE = "megatron-longrope2"

# What a stage writes, in sizes of the model's own files (2 bytes a parameter). Training: two checkpoints of
# bfloat16 weights, float32 weights and two moments (14 bytes a parameter).
DISK = {"import": 1, "export": 1, "train": 14}


def settings_problems(settings: Settings) -> list[str]:
    """What is wrong with the settings' inputs, as far as it can be seen before any stage has run."""
    found = _collect(lambda: _model_problems(settings))
    for key in ("books", "held_out_books"):
        path = getattr(settings.model, key)
        if path is not None and not path.exists():
            found.append(f"{settings.source}: model: {key}: {path} does not exist")
    if not settings.environment.network.is_file():
        found.append(
            f"{settings.source}: environment: network: {settings.environment.network} does not exist"
        )
    return found


def node_problems(stage: StageSettings) -> list[str]:
    """What is wrong with this node: packages and GPUs."""
    return _version_problems() + _gpu_problems(stage)


def stage_problems(settings: Settings, name: str) -> list[str]:
    """What is wrong with what a stage reads and where it writes."""
    found = settings_problems(settings)
    found += _collect(lambda: _disk_problems(settings, name))
    if name in ("search", "train"):
        found += _collect(lambda: _checkpoint_problems(settings.run / "base"))
    if name in ("export", "evaluate"):
        found += _collect(lambda: _checkpoint_problems(settings.run / "checkpoints"))
    if name == "train":
        found += _collect(lambda: _factor_problems(settings))
        found += _collect(lambda: _pool_problems(settings))
    return found


def environment() -> dict[str, Any]:
    """Versions, devices and the variables that steer them, for the attempt's record."""
    packages = ("torch", "megatron-core", "transformer-engine", "transformers", "numpy", "safetensors")
    steering = re.compile(r"(NCCL|UCX|CUDA|TORCH|OMP|GLOO|SLURM_JOB|PYTORCH)_")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "host": platform.node(),
        "packages": {name: version for name in packages if (version := _version(name))},
        "gpus": _gpus() if os.environ.get("SLURM_GPUS_ON_NODE") else [],
        "variables": {key: value for key, value in sorted(os.environ.items()) if steering.match(key)},
    }


def _collect(check: Callable[[], list[str]]) -> list[str]:
    """A check that refuses has found one problem."""
    try:
        return check()
    except InputError as error:
        return [str(error)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_problems() -> list[str]:
    """By what the installed package itself requires."""
    if _version(PACKAGE) is None:
        return [f"{sys.executable}: {PACKAGE} is not installed; pip install --no-deps --editable REPOSITORY"]
    found = []
    for line in importlib.metadata.requires(PACKAGE) or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            found.append(f"{sys.executable}: {requirement.name} is not installed; {requirement} is needed")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{sys.executable}: {requirement.name} is {version}; {requirement} is needed")
    return found


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _gpu_problems(stage: StageSettings) -> list[str]:
    if not stage.gpus_per_node:
        return []
    gpus = _gpus()
    if len(gpus) >= stage.processes:
        return []
    return [
        f"{platform.node()}: torch sees {len(gpus)} GPUs for {stage.processes} processes; check the driver, "
        "the container and gpus_per_node"
    ]


def _model_problems(settings: Settings) -> list[str]:
    config, rope = _rope(settings)
    source, target = settings.source, settings.model.target_length
    found = []
    original = rope.fields.get("original_max_position_embeddings") or rope.max_length
    if target <= original:
        found.append(
            f"{source}: model: target_length: {target} is not longer than the model's own {original:g}"
        )
    for name in ("search", "train", "evaluate"):
        stage = settings.stages.get(name)
        if stage is not None:
            found += [f"{source}: stages.{name}: {what}" for what in _layout_problems(stage, config, target)]
    return found


def _layout_problems(stage: StageSettings, config: dict[str, Any], target: int) -> list[str]:
    found = []
    tensor, pipeline, context = stage.tensor_parallel, stage.pipeline_parallel, stage.context_parallel
    sequence = tensor if "--sequence-parallel" in stage.options.split() else 1
    share = (2 * context if context > 1 else 1) * sequence
    if target % share:
        found.append(
            f"context_parallel: {target} tokens do not divide by {share} (2 x context parallel, x tensor "
            "parallel with sequence parallelism)"
        )
    heads = config.get("num_attention_heads", tensor)
    if heads % tensor:
        found.append(f"tensor_parallel: {heads} attention heads do not divide by {tensor}")
    layers = config.get("num_hidden_layers", pipeline)
    if layers % pipeline:
        found.append(f"pipeline_parallel: {layers} layers do not divide by {pipeline}")
    return found


def _rope(settings: Settings) -> tuple[dict[str, Any], HfRope]:
    config = read_hf_config(settings.model.hf_dir)
    return config, read_hf_rope(config, source=str(settings.model.hf_dir / "config.json"))


def _disk_problems(settings: Settings, name: str) -> list[str]:
    size = sum(file.stat().st_size for file in settings.model.hf_dir.glob("*.safetensors"))
    needed, free = DISK.get(name, 0) * size, shutil.disk_usage(settings.run).free
    if free >= needed:
        return []
    return [f"{settings.run}: {free / 1e9:.1f} GB free, {name} needs about {needed / 1e9:.1f} GB"]


def _checkpoint_problems(folder: Path) -> list[str]:
    """The metadata can be read, and every file that it names is there and long enough."""
    # torch takes seconds to import.
    from megatron_longrope2.checkpoint.megatron_files import MegatronTensors

    tensors = MegatronTensors(folder)
    ends: dict[str, int] = {}
    for place in tensors._metadata.storage_data.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    found = []
    for name, end in sorted(ends.items()):
        file = tensors.folder / name
        size = file.stat().st_size if file.exists() else 0
        if size < end:
            found.append(f"{file}: is {size} bytes where the checkpoint needs {end}; copy it again")
    return found


def _factor_problems(settings: Settings) -> list[str]:
    _, rope = _rope(settings)
    place = factors_file(settings)
    factors = load_factors(place, rope_base=rope.rope_base, rotary_dim=rope.rotary_dim)
    target = settings.model.target_length
    if target > factors.target_length:
        return [f"{place}: target_length: {factors.target_length} is shorter than the settings' {target}"]
    return []


def _pool_problems(settings: Settings) -> list[str]:
    """Each pool is there, and was made with the model's tokenizer."""
    stage = settings.stages["train"]
    prefixes = [settings.fill(pool).split()[2] for pool in stage.pools]
    if stage.mix:
        # It imports Megatron, which takes seconds.
        from megatron_longrope2.data.mix import load_mix_pools

        prefixes += [pool.path_prefix for pool in load_mix_pools(settings.fill(stage.mix))[0]]
    found = []
    for prefix in prefixes:
        missing = [f"{prefix}{suffix}" for suffix in (".bin", ".idx") if not Path(prefix + suffix).is_file()]
        found += [f"{file}: no such file; name the pool's path without .bin and .idx" for file in missing]
        manifest = Path(prefix).with_name("manifest.json")
        if manifest.exists():
            try:
                check_tokenizer(manifest, settings.model.hf_dir)
            except InputError as error:
                found.append(str(error))
    return sorted(set(found))


def _main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of a submitted chain")
    parser.add_argument("stage", choices=list(NEEDS), help="the stage to check")
    parser.add_argument("--output", type=Path, help="write versions, GPUs and variables there, as JSON")
    arguments = parser.parse_args()
    chain = read_json(arguments.run / "chain.json")
    settings = load_settings(arguments.run / "settings.toml", base=Path(chain["base"]))
    # Each node looks at itself; the first one also at what they share.
    found = node_problems(settings.stages[arguments.stage])
    if os.environ.get("SLURM_NODEID", "0") == "0":
        found += stage_problems(settings, arguments.stage)
        if arguments.output:
            write_json(arguments.output, environment())
    for problem in found:
        print(f"preflight: {problem}", file=sys.stderr, flush=True)
    if found:
        raise InputError(f"{arguments.stage}: {len(found)} problems, see above; nothing was started")


if __name__ == "__main__":
    run_main(_main)
