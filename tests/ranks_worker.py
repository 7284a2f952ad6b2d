"""What every rank gets of the main rank's work."""

import os

import torch.distributed as dist

from megatron_longrope2.errors import InputError
from megatron_longrope2.ranks import on_main


def refuse() -> None:
    raise InputError(f"refused by {dist.get_rank()}")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    process = on_main(os.getpid)
    try:
        on_main(refuse)
    except InputError as error:
        print(f"process {process}, {error}", flush=True)
    dist.destroy_process_group()
