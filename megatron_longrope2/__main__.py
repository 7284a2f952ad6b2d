"""`python -m megatron_longrope2 VERB`."""

from megatron_longrope2.cli import run_main

if __name__ == "__main__":
    run_main()
