"""`longrope2 submit`."""

from pathlib import Path

from megatron_longrope2.launch.chain import submit
from megatron_longrope2.launch.settings import load_settings


def main(settings: Path, /, *, resume: bool = False) -> None:
    """Submit the whole pipeline (import, preprocess, needles, search, train, export, evaluate) to Slurm.

    Args:
        settings: The TOML file of the chain. slurm/example.toml explains every key.
        resume: Continue a chain that has stopped: its stages that are not done are submitted again.
    """
    chain = load_settings(settings)
    for name, job in submit(chain, resume=resume).items():
        print(f"{name:<10} job {job}")
    print(f"run folder: {chain.run}; `longrope2 status {chain.run}` shows where the chain is")
