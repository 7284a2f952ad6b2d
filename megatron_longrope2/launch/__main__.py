"""`python -m megatron_longrope2.launch COMMAND`: what slurm/stage.sbatch runs before and after a stage."""

from cyclopts import App

from megatron_longrope2.cli import run_main

app = App(
    name="python -m megatron_longrope2.launch", help=__doc__, result_action="print_non_none_return_zero"
)
app.command("megatron_longrope2.launch.attempts:begin")
app.command("megatron_longrope2.launch.preflight:preflight")
app.command("megatron_longrope2.launch.attempts:end")

if __name__ == "__main__":
    run_main(app)
