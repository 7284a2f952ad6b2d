"""`longrope2 submit`."""

from pathlib import Path

from megatron_longrope2.errors import InputError
from megatron_longrope2.launch.chain import submit
from megatron_longrope2.launch.commands import rehearsal_job
from megatron_longrope2.launch.settings import load_settings
from megatron_longrope2.rehearsal.settings import MachineSettings


def main(
    settings: Path,
    /,
    *,
    resume: bool = False,
    rehearse: bool = False,
    machines: MachineSettings = MachineSettings(),
) -> None:
    """Submit the whole pipeline (import, preprocess, needles, search, train, export, evaluate) to Slurm.

    Args:
        settings: The TOML file of the chain. slurm/example.toml explains every key.
        resume: Continue a chain that has stopped: its stages that are not done are submitted again.
        rehearse: First run one step of each rank on this machine, with tensors that have no memory, and
            submit nothing where a GPU's memory does not suffice.
    """
    chain = load_settings(settings)
    if rehearse:
        from megatron_longrope2.rehearsal.rehearse import rehearse as run_rehearsal
        from megatron_longrope2.rehearsal.report import fits, verdict

        found = run_rehearsal(rehearsal_job(chain), machines)
        if not fits(found, machines):
            raise InputError(f"{settings}: {verdict(found, machines)}")
        print(verdict(found, machines))
    for name, job in submit(chain, resume=resume).items():
        print(f"{name:<10} job {job}")
    print(f"run folder: {chain.run}; `longrope2 status {chain.run}` shows where the chain is")
