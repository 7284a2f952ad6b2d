"""Everything that can be known to be wrong before a stage starts, all of it at once."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from megatron_longrope2.data.manifest import check_pool_tokenizer, load_mix_pools
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import write_json
from megatron_longrope2.launch.commands import factors_file
from megatron_longrope2.launch.run_folder import load_chain
from megatron_longrope2.launch.settings import Settings, StageSettings
from megatron_longrope2.provenance import versions
from megatron_longrope2.rope import load_factors
from megatron_longrope2.rope.hf import parse_rope, read_config, read_rope

PACKAGE = "megatron-longrope2"

# What a stage writes, in sizes of the model's own files (2 bytes a parameter). Training: two checkpoints of
# bfloat16 weights, float32 weights and two moments (14 bytes a parameter).
DISK = {"import": 1, "export": 1, "train": 14}

_STEERING = re.compile(r"(NCCL|UCX|CUDA|TORCH|OMP|GLOO|SLURM_JOB|PYTORCH)_")


def preflight(run: Path, stage: str, *, output: Path) -> None:
    """Check one node before a stage starts; the first node also checks what they all share.

    Args:
        run: The run folder of the chain.
        stage: The stage that is about to start.
        output: The JSON file for the first node's versions, GPUs and environment variables.

    Raises:
        InputError: something is wrong; all of it was printed.
    """
    _, settings = load_chain(run)
    found = node_problems(settings.stages[stage])
    if os.environ.get("SLURM_NODEID", "0") == "0":
        found += stage_problems(settings, stage)
        write_json(output, environment())
    for problem in found:
        print(f"preflight: {problem}", file=sys.stderr, flush=True)
    if found:
        raise InputError(f"{stage}: {len(found)} problems, see above; nothing was started")


def settings_problems(settings: Settings) -> list[str]:
    """What is wrong with the settings' inputs, as far as it can be seen before any stage has run."""
    return _all(_missing_inputs(settings), _model_problems(settings))


def node_problems(stage: StageSettings) -> list[str]:
    """What is wrong with this node: packages and GPUs."""
    return _all(_version_problems(), _gpu_problems(stage))


def stage_problems(settings: Settings, name: str) -> list[str]:
    """What is wrong with what a stage reads and where it writes."""
    checks = [_missing_inputs(settings), _model_problems(settings), _disk_problems(settings, name)]
    if name in ("search", "train"):
        checks.append(_checkpoint_problems(settings.run / "base"))
    if name in ("export", "evaluate"):
        checks.append(_checkpoint_problems(settings.run / "checkpoints"))
    if name == "train":
        checks += [_factor_problems(settings), _pool_problems(settings)]
    return _all(*checks)


def environment() -> dict[str, Any]:
    """Versions, devices and the variables that steer them, for the attempt's record."""
    return {
        "executable": sys.executable,
        "host": platform.node(),
        "versions": versions(),
        "gpus": _gpus() if os.environ.get("SLURM_GPUS_ON_NODE") else [],
        "variables": {key: value for key, value in sorted(os.environ.items()) if _STEERING.match(key)},
    }


def _all(*checks: Iterator[str]) -> list[str]:
    """The problems that the checks find; a check that raises an InputError has found one more."""
    found: list[str] = []
    for check in checks:
        try:
            found.extend(check)
        except InputError as error:
            found.append(str(error))
    return found


def _version_problems() -> Iterator[str]:
    """By what the installed package itself requires."""
    if _version(PACKAGE) is None:
        yield f"{sys.executable}: {PACKAGE} is not installed; pip install --no-deps --editable REPOSITORY"
        return
    for requirement in map(Requirement, importlib.metadata.requires(PACKAGE) or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = version or "not installed"
            yield f"{sys.executable}: {requirement.name} is {found}; {requirement} is needed"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu_problems(stage: StageSettings) -> Iterator[str]:
    if stage.gpus_per_node and (count := len(_gpus())) < stage.processes:
        yield (
            f"{platform.node()}: torch sees {count} GPUs for {stage.processes} processes; check the driver, "
            "the container and gpus_per_node"
        )


def _gpus() -> list[str]:
    import torch  # it takes seconds

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _missing_inputs(settings: Settings) -> Iterator[str]:
    inputs = {
        "model.books": settings.model.books,
        "model.held_out_books": settings.model.held_out_books,
        "environment.network": settings.environment.network,
    }
    for key, path in inputs.items():
        if path is not None and not path.exists():
            yield f"{settings.source}: {key}: {path} does not exist"


def _model_problems(settings: Settings) -> Iterator[str]:
    model, source = settings.model, settings.source
    config = read_config(model.hf_dir)
    original = parse_rope(config, str(model.hf_dir / "config.json")).original_length
    if model.target_length <= original:
        yield (
            f"{source}: model.target_length: {model.target_length} is not longer than the model's own "
            f"{original}"
        )
    for name, stage in settings.stages.items():
        for problem in _layout_problems(stage, config, model.target_length):
            yield f"{source}: stages.{name}.{problem}"


def _layout_problems(stage: StageSettings, config: dict[str, Any], target: int) -> Iterator[str]:
    tensor, pipeline, context = stage.tensor_parallel, stage.pipeline_parallel, stage.context_parallel
    share = (2 * context if context > 1 else 1) * (
        tensor if "--sequence-parallel" in stage.options.split() else 1
    )
    if target % share:
        yield (
            f"context_parallel: {target} tokens do not divide by {share} (2 x context parallel, x tensor "
            "parallel with sequence parallelism)"
        )
    heads, layers = config.get("num_attention_heads", tensor), config.get("num_hidden_layers", pipeline)
    if heads % tensor:
        yield f"tensor_parallel: {heads} attention heads do not divide by {tensor}"
    if layers % pipeline:
        yield f"pipeline_parallel: {layers} layers do not divide by {pipeline}"


def _disk_problems(settings: Settings, name: str) -> Iterator[str]:
    size = sum(file.stat().st_size for file in settings.model.hf_dir.glob("*.safetensors"))
    needed, free = DISK.get(name, 0) * size, shutil.disk_usage(settings.run).free
    if free < needed:
        yield f"{settings.run}: {free / 1e9:.1f} GB free, {name} needs about {needed / 1e9:.1f} GB"


def _checkpoint_problems(folder: Path) -> Iterator[str]:
    """The metadata can be read, and every file that it names is there and long enough."""
    from megatron_longrope2.checkpoint.megatron_files import MegatronTensors  # imports torch

    for file, needed in sorted(MegatronTensors(folder).file_sizes().items()):
        size = file.stat().st_size if file.exists() else 0
        if size < needed:
            yield f"{file}: is {size} bytes where the checkpoint needs {needed}; copy it again"


def _factor_problems(settings: Settings) -> Iterator[str]:
    model, place = settings.model, factors_file(settings)
    factors = load_factors(place, **read_rope(model.hf_dir).facts)
    if model.target_length > factors.target_length:
        yield (
            f"{place}: target_length: {factors.target_length} is shorter than the settings' "
            f"{model.target_length}"
        )


def _pool_problems(settings: Settings) -> Iterator[str]:
    """Each pool is there, and was made with the model's tokenizer."""
    stage = settings.stages["train"]
    prefixes = [settings.words(pool)[2] for pool in stage.pools]
    if stage.mix:
        prefixes += [pool.path_prefix for pool in load_mix_pools(settings.fill(stage.mix))[0]]
    for prefix in prefixes:
        for file in (f"{prefix}.bin", f"{prefix}.idx"):
            if not Path(file).is_file():
                yield f"{file}: no such file; name the pool's path without .bin and .idx"
    for folder in sorted({Path(prefix).parent for prefix in prefixes}):
        try:
            check_pool_tokenizer(folder, settings.model.hf_dir)
        except InputError as error:
            yield str(error)
