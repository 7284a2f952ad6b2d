"""`python -m megatron_longrope2.pretrain`: mixed context window training, under torchrun or srun."""

from megatron_longrope2 import device
from megatron_longrope2.errors import run_main


def main() -> None:
    """Train; the arguments are Megatron's and those of `--help`'s LongRoPE2 groups."""
    device.install()
    from megatron_longrope2.training.loop import train

    run_main(train)


if __name__ == "__main__":
    main()
