"""Submit a chain of Slurm jobs (import, preprocess, needles, search, train, export, evaluate) from one
settings file; slurm/example.toml explains every key."""

import argparse
from pathlib import Path

from megatron_longrope2.errors import run_main
from megatron_longrope2.launch.chain import submit
from megatron_longrope2.launch.settings import load_settings


def main() -> None:
    """Run the command line; bad input ends it with one line each and status 2, and submits nothing."""
    run_main(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path, help="TOML file of the chain")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a chain that has stopped: its stages that are not done are submitted again",
    )
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings)
    jobs = submit(settings, resume=arguments.resume)
    for name, job in jobs.items():
        print(f"{name:<10} job {job}")
    print(f"run folder: {settings.run}; `tools/status.py {settings.run}` shows where the chain is")


if __name__ == "__main__":
    main()
