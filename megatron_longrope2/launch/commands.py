"""The command lines of each stage, and the shell file that its job reads."""

import shlex
from argparse import ArgumentParser
from collections.abc import Collection, Mapping

from megatron_longrope2.errors import InputError
from megatron_longrope2.launch.settings import ROOT, ModelSettings, Settings, StageSettings
from megatron_longrope2.rehearsal.settings import VERBS, Job, Stage


def stage_commands(settings: Settings, name: str) -> list[list[str]]:
    """The commands of a stage, in order, as the words after `longrope2`: a stage's verb is its name.

    What the chain decides (paths, lengths, layout) comes first and the settings' own options last, because of
    an option that is given twice the last one counts.
    """
    stage, model, run = settings.stages[name], settings.model, settings.run
    if name == "evaluate":
        return [_measure(settings, measure) for measure in stage.measures]
    base, checkpoints = run / "base", run / "checkpoints"
    options: dict[str, dict[str, object]] = {
        "import": {"hf-dir": model.hf_dir, "save-dir": base},
        "preprocess": {"tokenizer": model.hf_dir, "output": run / "data"},
        "needles": {
            "tokenizer": model.hf_dir,
            "books": model.books,
            "lengths": model.target_length,
            "output": run / "needles" / "train",
        },
        "search": {
            "load": base,
            "books": model.books,
            "target-length": model.target_length,
            "output": run / "search",
            **_held_out(model, "held-out-books"),
            **_layout(stage),
        },
        "train": {
            "pretrained-checkpoint": base,
            "load": checkpoints,
            "save": checkpoints,
            "ckpt-format": "torch_dist",
            "rope-factors": factors_file(settings),
            "seq-length": model.target_length,
            # slurm/stage.sbatch says why it is this signal.
            "exit-signal": "SIGURG",
            "tensorboard-dir": run / "tensorboard",
            **_layout(stage),
        },
        "export": {"load-dir": checkpoints, "save-dir": run / "hf"},
    }
    words = [name, *_options(options[name])]
    if name == "train":
        words += ["--exit-signal-handler", *_data(settings, stage)]
    return [words + settings.words(stage.options)]


def rehearsal_job(settings: Settings, names: Collection[str] = VERBS) -> Job:
    """What a rehearsal of the chain runs: the commands of the stages that need GPUs.

    Raises:
        InputError: the chain has none of the stages.
    """
    stages = [
        Stage(tuple(words), settings.stages[name].ranks)
        for name in names
        if name in settings.stages
        for words in stage_commands(settings, name)
    ]
    if not stages:
        raise InputError(
            f"{settings.source}: stages: has none of {', '.join(names)}, nothing can be rehearsed"
        )
    imported = settings.stages.get("import")
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--original-length", type=int)
    given, _ = parser.parse_known_args(settings.words(imported.options) if imported else [])
    model = settings.model
    return Job(tuple(stages), str(model.hf_dir), model.target_length, given.original_length)


def factors_file(settings: Settings) -> str:
    """The factors that training uses."""
    return settings.fill(settings.model.factors or "{run}/search/factors.json")


def job_file(settings: Settings, name: str) -> str:
    """The shell file that `slurm/stage.sbatch` reads: names, and one quoted line for each command."""
    stage, environment = settings.stages[name], settings.environment
    container = []
    if environment.container_image:
        own = [f"{folder}:{folder}" for folder in (ROOT, settings.run)]
        mounts = ",".join([*own, *map(settings.fill, environment.container_mounts)])
        container = [f"--container-image={environment.container_image}", f"--container-mounts={mounts}"]
    values = {
        "stage": name,
        "run": str(settings.run),
        "root": str(ROOT),
        "python": settings.fill(environment.python),
        "network": str(environment.network),
        "processes_per_node": str(stage.processes),
    }
    return "\n".join(
        [
            "# shellcheck shell=bash disable=SC2034",
            "# Made by `longrope2 submit` from the settings; slurm/stage.sbatch reads it in the stage's job.",
            *(f"{key}={shlex.quote(value)}" for key, value in values.items()),
            f"container=({shlex.join(container)})",
            "commands=(",
            *(f"  {shlex.quote(shlex.join(words))}" for words in stage_commands(settings, name)),
            ")\n",
        ]
    )


def _options(values: Mapping[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _layout(stage: StageSettings) -> dict[str, object]:
    return {
        "tensor-model-parallel-size": stage.tensor_parallel,
        "pipeline-model-parallel-size": stage.pipeline_parallel,
        "context-parallel-size": stage.context_parallel,
    }


def _held_out(model: ModelSettings, option: str) -> dict[str, object]:
    return {option: model.held_out_books} if model.held_out_books else {}


def _data(settings: Settings, stage: StageSettings) -> list[str]:
    mix = ["--mix", settings.fill(stage.mix)] if stage.mix else []
    return mix + [word for pool in stage.pools for word in ("--pool", *settings.words(pool))]


def _measure(settings: Settings, measure: str) -> list[str]:
    kind, *options = settings.words(measure)
    stage, run = settings.stages["evaluate"], settings.run
    given = {"load": run / "checkpoints", "output": run / "evaluation", **_layout(stage)}
    given |= _held_out(settings.model, "books")
    return ["evaluate", kind, *_options(given), *options, *settings.words(stage.options)]
