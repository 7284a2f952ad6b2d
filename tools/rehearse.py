"""`longrope2 rehearse`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import write_json
from megatron_longrope2.launch.commands import rehearsal_job
from megatron_longrope2.launch.settings import load_settings
from megatron_longrope2.rehearsal.settings import VERBS, Job, MachineSettings, Stage, Verb


def main(
    settings: Path | None = None,
    /,
    *,
    stages: tuple[Verb, ...] = VERBS,
    model: str | None = None,
    length: PositiveInt | None = None,
    original_length: PositiveInt | None = None,
    gpus: PositiveInt = 64,
    machines: MachineSettings = MachineSettings(),
    output: Path | None = None,
    command: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, consume_multiple=True)] = (),
) -> None:
    """Run one step of each rank of a job on this machine, with tensors that have shapes but no memory.

    It says whether the job fits into the GPUs' memory, what fills it, what is sent, and where a layer waits.
    Nothing is computed, so it says nothing about speed. The exit status is 1 where something does not fit.

    Args:
        settings: The TOML file of a chain of Slurm jobs, of which search, training and evaluation are
            rehearsed.
        stages: The stages of the chain that are rehearsed.
        model: The model: a Hugging Face folder (its config.json is enough), a Megatron checkpoint, or one of
            the planner's presets. By default the chain's.
        length: The target length in tokens. By default the chain's, or 131072.
        original_length: The window that the model was pre-trained on, in tokens, if it is not the one that
            the model or the chain states.
        gpus: The number of GPUs of a command that is given by hand.
        output: A JSON file for all that was found.
        command: A command to rehearse instead of a chain, after `longrope2`: all that follows, such as
            --command train --bf16 --tensor-model-parallel-size 4.
    """
    from megatron_longrope2.rehearsal.rehearse import rehearse
    from megatron_longrope2.rehearsal.report import fits, text, to_dict

    if (settings is None) == (not command):
        raise InputError("SETTINGS: name the settings file of a chain, or give --command; one of them")
    if settings is None:
        if model is None:
            raise InputError("--model: is missing; --command needs it")
        job = Job((Stage(command, gpus),), model, length or 131072, original_length)
    else:
        job = rehearsal_job(load_settings(settings), stages)
        given = {"model": model, "target_length": length, "original_length": original_length}
        job = replace(job, **{name: value for name, value in given.items() if value is not None})
    found = rehearse(job, machines)
    print(text(found, machines))
    if output:
        write_json(output, to_dict(found, machines))
    if not fits(found, machines):
        sys.exit(1)
