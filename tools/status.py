"""Where a chain of Slurm jobs is: state, attempts and step of each stage, and the logs of what went wrong."""

import argparse
from pathlib import Path

from megatron_longrope2.errors import run_main
from megatron_longrope2.launch.status import chain_status, logs, table


def main() -> None:
    """Run the command line; bad input ends it with one line and status 2."""
    run_main(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder that tools/submit.py printed")
    run = parser.parse_args().run
    print(table(chain_status(run)))
    print(*logs(run), sep="\n")


if __name__ == "__main__":
    main()
