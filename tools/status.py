"""`longrope2 status`."""

from pathlib import Path

from megatron_longrope2.launch.status import chain_status


def main(run: Path, /) -> None:
    """Show where a chain of Slurm jobs is: state, attempts and step of each stage, and the logs of failures.

    Args:
        run: The run folder that `longrope2 submit` printed.
    """
    print(chain_status(run))
