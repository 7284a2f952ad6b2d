"""Run under torchrun: one step in each of several parallel layouts, losses and gradients written out.

usage: train_worker.py LAYOUTS.json OUTPUT.pt ARGUMENT...

LAYOUTS.json maps a layout's name to its Megatron arguments; ARGUMENT... are common to all. OUTPUT.pt maps the
name to {"losses": {name: value}, "gradients": {parameter's name in the whole model: whole gradient}}.
"""

import json
import sys
from pathlib import Path
from typing import Any

from megatron_longrope2 import device

device.install()

import torch
from megatron.core import mpu
from megatron.core.distributed import finalize_model_grads
from megatron.core.enums import ModelType
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_model_config, unwrap_model
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.initialize import initialize_megatron
from megatron.training.training import (
    build_train_valid_test_data_iterators,
    destroy_global_state,
    setup_model_and_optimizer,
)

from megatron_longrope2.model.arguments import model_config
from megatron_longrope2.training.arguments import parse_training_arguments
from megatron_longrope2.training.loop import forward_step
from megatron_longrope2.training.segments import segment_provider


def main() -> None:
    layouts_file, output_file, *common = sys.argv[1:]
    results = {}
    for name, arguments in json.loads(Path(layouts_file).read_text()).items():
        sys.argv = ["pretrain", *common, *arguments]
        results[name] = one_step()
        destroy_global_state()
    if torch.distributed.get_rank() == 0:
        torch.save(results, output_file)


def one_step() -> dict[str, Any]:
    args = parse_training_arguments()
    provider = segment_provider(args)
    initialize_megatron(allow_no_cuda=True, store=device.rendezvous_store())
    model, optimizer, _ = setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        cfg_container=pretrain_cfg_container_from_args(args, model_config(args)),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    stages = range(len(model)) if len(model) > 1 else [None]
    iterators = [build_train_valid_test_data_iterators(provider)[0] for _ in stages]
    config = get_model_config(model[0])
    config.grad_scale_func = optimizer.scale_loss
    config.finalize_model_grads_func = finalize_model_grads
    for chunk in model:
        chunk.zero_grad_buffer()
    reports = get_forward_backward_func()(
        forward_step_func=forward_step(args),
        data_iterator=iterators if len(model) > 1 else iterators[0],
        model=model,
        num_microbatches=get_num_microbatches(),
        seq_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        decoder_seq_length=args.seq_length,
        forward_only=False,
    )
    gradients: dict[str, torch.Tensor] = {}
    for chunk in unwrap_model(model):
        gradients.update(whole_gradients(chunk))
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, (gradients, losses(reports)))
    merged: dict[str, Any] = {"gradients": {}, "losses": {}}
    for part_gradients, part_losses in parts:
        merged["gradients"].update(part_gradients)
        merged["losses"].update(part_losses)
    return merged


def losses(reports: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """What is logged of losses and tokens, averaged as upstream's train_step does."""
    result = {}
    for key in reports[0] if reports else ():
        if key == "tokens per second":
            continue
        total = torch.stack([report[key].view(-1) for report in reports]).sum(0).double()
        torch.distributed.all_reduce(total, group=mpu.get_data_parallel_group(with_context_parallel=True))
        result[key] = float(total[0] / total[1])
    return result


def whole_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of this pipeline stage's parameters, whole, by their name in the whole model."""
    result = {}
    group = mpu.get_tensor_model_parallel_group()
    for name, parameter in model.named_parameters():
        gradient = parameter.main_grad.detach().clone()
        if getattr(parameter, "tensor_model_parallel", False) and group.size() > 1:
            shards = [torch.empty_like(gradient) for _ in range(group.size())]
            torch.distributed.all_gather(shards, gradient.contiguous(), group=group)
            if (
                "linear_fc1" in name
            ):  # every rank holds its part of the gate, then its part of the up projection
                gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
                gradient = torch.cat([*gates, *ups])
            else:
                gradient = torch.cat(shards, dim=parameter.partition_dim)
        if name.startswith("decoder.layers."):
            local = int(name.split(".")[2])
            layer = model.decoder.layers[local].layer_number - 1
            name = name.replace(f"decoder.layers.{local}.", f"decoder.layers.{layer}.", 1)
        if name == "output_layer.weight" and model.share_embeddings_and_output_weights:
            name = "embedding.word_embeddings.weight"  # the last stage's copy
        result[name] = gradient
    return result


if __name__ == "__main__":
    main()
