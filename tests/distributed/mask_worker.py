"""Run under torchrun: does changing one document change another's logits?

usage: mask_worker.py OUTPUT.json ARGUMENT...

One pack holds short documents and long ones. OUTPUT.json gets, for every document that was changed, the
numbers of the documents whose logits then differ in any bit.
"""

import json
import sys
from pathlib import Path

from megatron_longrope2 import device

device.install()

import torch
from megatron.core import mpu
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import unwrap_model
from megatron.training.initialize import initialize_megatron

from megatron_longrope2.model.arguments import model_config
from megatron_longrope2.model.pack import DocumentPack
from megatron_longrope2.training.arguments import parse_training_arguments

LENGTHS = (32, 100, 64, 16, 132, 64)


def main() -> None:
    output, *arguments = sys.argv[1:]
    sys.argv = ["pretrain", *arguments]
    args = parse_training_arguments()
    initialize_megatron(allow_no_cuda=True, store=device.rendezvous_store())
    config = model_config(args)
    builder = config.get_builder_cls()(config)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    (model,) = unwrap_model(builder.build_distributed_models(pg_collection=groups, wrap_with_ddp=False))

    packed = DocumentPack.of(LENGTHS, args.context_parallel_size, mpu.get_context_parallel_rank())
    boundaries, local = packed.cu_seqlens_q, packed.local_indices
    if local is None:
        local = torch.arange(sum(LENGTHS))
    documents = torch.searchsorted(boundaries[1:], local, right=True)
    tokens = torch.randint(0, args.vocab_size, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def logits(of: torch.Tensor) -> torch.Tensor:
        return model(of[:, local], local[None], None, packed_seq_params=packed)[0]

    before, result = logits(tokens), {}
    for number in range(len(LENGTHS)):
        changed = tokens.clone()
        start, end = boundaries[number : number + 2].tolist()
        changed[:, start:end] = (changed[:, start:end] + 1) % args.vocab_size
        differs = (logits(changed) != before).any(-1)
        touched: list[list[int]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(touched, documents[differs].unique().tolist())
        result[number] = sorted(set().union(*touched))
    if torch.distributed.get_rank() == 0:
        Path(output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
