"""Train with mixed context windows, under torchrun or srun; the options are Megatron's and ours."""

import sys
from typing import Annotated

from cyclopts import Parameter

from megatron_longrope2.cli import command_line
from megatron_longrope2.model.settings import ModelSettings
from megatron_longrope2.training.settings import FactorTrainingSettings, MixedWindowSettings


def options(
    *,
    model: ModelSettings | None = None,
    windows: MixedWindowSettings | None = None,
    factors: FactorTrainingSettings | None = None,
) -> None:
    """Train with mixed context windows on Megatron-LM's own training loop.

    Every argument of Megatron-LM's pretraining is accepted beside the options below. `--help-megatron` prints
    all of them; they are defined in megatron/training/arguments.py and in the dataclasses of
    megatron/training/config of the installed megatron-core.
    """


def main(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Print the help, or hand the arguments to Megatron's own parser, which reads them from `sys.argv`."""
    if {"--help", "-h"} & set(arguments):
        command_line("longrope2 train", default_command=options, version_flags=[]).help_print()
        return
    from megatron_longrope2 import device

    sys.argv[1:] = arguments
    device.install()
    if "--help-megatron" in arguments:
        from megatron_longrope2.training.arguments import full_help

        print(full_help())
        return
    from megatron_longrope2.training.loop import train

    train()
