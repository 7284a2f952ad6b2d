"""Train with mixed context windows, under torchrun or srun; the options are Megatron's and ours."""

import sys
from typing import Annotated

from cyclopts import Parameter

from megatron_longrope2 import device


def main(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Hand the arguments to Megatron's own parser, which reads them from `sys.argv`."""
    sys.argv[1:] = arguments
    device.install()
    from megatron_longrope2.training.loop import train

    train()
