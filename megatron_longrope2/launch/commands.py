"""The command lines of each stage, and the shell file that its job reads."""

import shlex

from megatron_longrope2.launch.settings import ROOT, Settings, StageSettings


def stage_commands(settings: Settings, name: str) -> list[list[str]]:
    """The commands of a stage, in order: a script or `-m` and a module, then its options.

    What the chain decides (paths, lengths, layout) comes first, the settings' own options last.
    """
    stage, model, run = settings.stages[name], settings.model, settings.run
    hf_dir, length = str(model.hf_dir), str(model.target_length)
    base, checkpoints = str(run / "base"), str(run / "checkpoints")
    match name:
        case "import":
            words = ["tools/convert_hf_to_megatron.py", "--hf-dir", hf_dir, "--save-dir", base]
        case "preprocess":
            words = ["tools/preprocess_data.py", "--tokenizer", hf_dir, "--output", str(run / "data")]
        case "needles":
            words = [
                *("tools/make_needles.py", "--tokenizer", hf_dir, "--books", str(model.books)),
                *("--length", length, "--output", str(run / "needles" / "needles.safetensors")),
                *("--pool", str(run / "needles" / "train")),
            ]
        case "search":
            words = [
                *("tools/search_factors.py", "--load", base, "--books", str(model.books)),
                *("--target-length", length, "--output", str(run / "search"), *_layout(stage)),
            ]
        case "train":
            words = [*_training(settings, base, checkpoints), *_layout(stage), *_pools(settings, stage)]
        case "export":
            words = [
                *("tools/convert_megatron_to_hf.py", "--load-dir", checkpoints),
                *("--save-dir", str(run / "hf")),
            ]
        case _:
            return [_measure(settings, measure) for measure in stage.measures]
    return [words + shlex.split(settings.fill(stage.options))]


def factors_file(settings: Settings) -> str:
    """The factors that training uses."""
    return settings.fill(settings.model.factors or "{run}/search/factors.json")


def job_file(settings: Settings, name: str) -> str:
    """The shell file that `slurm/stage.sh` reads: names, and one quoted line for each command."""
    stage, environment = settings.stages[name], settings.environment
    container = []
    if environment.container_image:
        mounts = [f"{folder}:{folder}" for folder in (ROOT, settings.run)] + list(
            environment.container_mounts
        )
        container = [
            f"--container-image={environment.container_image}",
            f"--container-mounts={','.join(map(settings.fill, mounts))}",
        ]
    values = {
        "stage": name,
        "run": str(settings.run),
        "root": str(ROOT),
        "python": settings.fill(environment.python),
        "network": str(environment.network),
        "processes_per_node": str(stage.processes),
    }
    lines = [f"{key}={shlex.quote(value)}" for key, value in values.items()]
    lines.append(f"container=({shlex.join(container)})")
    commands = [shlex.quote(shlex.join(words)) for words in stage_commands(settings, name)]
    return "\n".join(
        [
            "# shellcheck shell=bash disable=SC2034",
            "# Made by tools/submit.py from the settings; a job's slurm/stage.sh reads it.",
            *lines,
            "commands=(",
            *(f"  {command}" for command in commands),
            ")\n",
        ]
    )


def _training(settings: Settings, base: str, checkpoints: str) -> list[str]:
    return [
        *("-m", "megatron_longrope2.pretrain", "--pretrained-checkpoint", base),
        *("--load", checkpoints, "--save", checkpoints, "--ckpt-format", "torch_dist"),
        *("--rope-factors", factors_file(settings), "--seq-length", str(settings.model.target_length)),
        # See slurm/stage.sh: a signal that only the trainer itself heeds.
        *("--exit-signal-handler", "--exit-signal", "SIGURG"),
        *("--tensorboard-dir", str(settings.run / "tensorboard")),
    ]


def _layout(stage: StageSettings) -> list[str]:
    return [
        *("--tensor-model-parallel-size", str(stage.tensor_parallel)),
        *("--pipeline-model-parallel-size", str(stage.pipeline_parallel)),
        *("--context-parallel-size", str(stage.context_parallel)),
    ]


def _pools(settings: Settings, stage: StageSettings) -> list[str]:
    mix = ["--mix", settings.fill(stage.mix)] if stage.mix else []
    return mix + [word for pool in stage.pools for word in ("--pool", *settings.fill(pool).split())]


def _measure(settings: Settings, measure: str) -> list[str]:
    kind, *options = shlex.split(settings.fill(measure))
    stage, run = settings.stages["evaluate"], settings.run
    words = ["tools/evaluate.py", kind, "--output", str(run / "evaluation")]
    if kind == "lm-eval":
        words += ["--hf-dir", str(run / "hf")]
    else:
        words += ["--load", str(run / "checkpoints"), *_layout(stage)]
        if settings.model.held_out_books:
            words += ["--books", str(settings.model.held_out_books)]
    return words + options + shlex.split(settings.fill(stage.options))
