"""What Megatron's `pretrain` is called with: model configuration, datasets, forward step, loss."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.training import get_timers, pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.training import update_seqlen_stats_from_cu_seqlens
from torch import Tensor

from megatron_longrope2.device import rendezvous_store
from megatron_longrope2.model.arguments import model_config
from megatron_longrope2.model.builder import LongRoPE2ModelConfig
from megatron_longrope2.training.arguments import parse_training_arguments
from megatron_longrope2.training.batch import Batch, next_batch
from megatron_longrope2.training.learned_factors import FactorTraining
from megatron_longrope2.training.reports import TrainingReport, ValidationReport
from megatron_longrope2.training.saving import check_save_folder
from megatron_longrope2.training.segments import Provider, segment_provider


def train() -> None:
    """Parse the command line, open the data, build the model and train.

    Raises:
        InputError: as `parse_training_arguments`, `segment_provider` and `check_save_folder`, before Megatron
            is initialised.
    """
    args = parse_training_arguments()
    config, provider = model_config(args), segment_provider(args)
    check_save_folder(args)
    run(args, config, provider)


def run(args: Namespace, config: LongRoPE2ModelConfig, provider: Provider) -> None:
    """Train on the segments of a provider, with factors that are learned if the arguments say so."""
    if args.train_rope_factors:
        FactorTraining(args, config)  # the configuration holds it
    pretrain(
        pretrain_cfg_container_from_args(args, config),
        provider,
        ModelType.encoder_or_decoder,
        forward_step(args),
        store=rendezvous_store(),
    )


def forward_step(args: Namespace) -> Callable[..., tuple[Tensor, Callable[..., Any]]]:
    """The function that takes one micro-batch through this pipeline stage."""
    training, validation = TrainingReport(args), ValidationReport(args)

    def step(iterator: Iterator[dict[str, Tensor]], model: GPTModel) -> tuple[Tensor, Callable[..., Any]]:
        training.start()
        timer = get_timers()("batch-generator", log_level=2)
        timer.start()
        batch = next_batch(iterator, args)
        timer.stop()
        if model.training:
            update_seqlen_stats_from_cu_seqlens(batch.packed.cu_seqlens_q)
        output = model(
            batch.tokens, batch.position_ids, None, labels=batch.labels, packed_seq_params=batch.packed
        )
        report = training if model.training else validation
        return output, partial(batch_loss, batch, report, args.check_for_nan_in_loss_and_grad)

    return step


def batch_loss(
    batch: Batch, report: Callable[[Batch, Tensor], dict[str, Tensor]], check_for_nan: bool, losses: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Megatron's loss function.

    Args:
        batch: the micro-batch.
        report: what is logged beside the whole loss: from the micro-batch and its masked losses, float32 [n],
            to [sum, count] for each name.
        check_for_nan: stop at a NaN or infinite loss, as `--check-for-nan-in-loss-and-grad` asks.
        losses: cross entropy of every token of this rank, [1, n].

    Returns:
        Sum of the losses, number of tokens with a loss (int), and for each report [sum, count].
    """
    assert batch.loss_mask is not None
    mask = batch.loss_mask.view(-1).float()
    masked = losses.view(-1).float() * mask
    loss, tokens = masked.sum(), mask.sum()
    if check_for_nan:
        for reject, what in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            get_rerun_state_machine().validate_result(
                result=loss,
                rejection_func=reject,
                message=f"found {what} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
    reports = {"lm loss": torch.stack([loss, tokens]).detach(), **report(batch, masked.detach())}
    return loss, tokens.detach().to(torch.int), reports
