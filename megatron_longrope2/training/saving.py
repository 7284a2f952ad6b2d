"""Whether checkpoints can be saved, asked before training rather than at the first save."""

from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryFile

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import check_space
from megatron_longrope2.model.dims import ModelDims


def check_save_folder(args: Namespace) -> None:
    """Make the folder of `--save`, write to it, and check that a checkpoint fits on its disk.

    Raises:
        InputError: the folder cannot be made or written, or the disk is too full.
    """
    if args.save is None or args.rank != 0:
        return
    folder = Path(args.save)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise InputError(f"{folder}: --save: cannot be written: {error.strerror or error}") from error
    check_space(folder, checkpoint_bytes(args))


def checkpoint_bytes(args: Namespace) -> int:
    """Size of a checkpoint: weights and, without `--no-save-optim`, Adam's states and float32 weights."""
    weight = 2 if args.bf16 or args.fp16 else 4
    states = 0 if args.no_save_optim else 8 if weight == 4 else 12
    return ModelDims.from_args(args).parameters * (weight + states)
