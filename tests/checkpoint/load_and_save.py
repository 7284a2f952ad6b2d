"""Run under torchrun: load checkpoints with TP2 x PP2 and save them again from there, as training does."""

import json
import sys

from megatron_longrope2 import device

device.install()

from megatron.training.checkpointing import save_checkpoint
from megatron.training.training import destroy_global_state

from megatron_longrope2.model.loading import load_model
from megatron_longrope2.model.settings import LayoutSettings


def load_and_save(source: str, target: str) -> None:
    """Save iteration 7 of what `source` holds to `target`."""
    model = load_model(source, LayoutSettings(tensor_model_parallel_size=2, pipeline_model_parallel_size=2))
    model.args.save = target
    model.args.no_save_optim = model.args.no_save_rng = True
    save_checkpoint(7, model.chunks, None, None, 0)


if __name__ == "__main__":
    pairs = json.loads(sys.argv[1])
    del sys.argv[1:]
    for source, target in pairs:
        load_and_save(source, target)
        destroy_global_state()
