"""What Megatron's `pretrain` is called with: the model configuration, the datasets, the forward step."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from megatron.core import mpu
from megatron.core.datasets.utils import Split
from megatron.core.enums import ModelType
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.training import get_args, get_timers, pretrain, print_rank_0
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.training import update_seqlen_stats_from_cu_seqlens
from torch import Tensor

from megatron_longrope2.data.mixed_window import MixedWindowConfig, MixedWindowDataset, format_statistics
from megatron_longrope2.device import rendezvous_store
from megatron_longrope2.model.arguments import model_config
from megatron_longrope2.training.arguments import parse_training_arguments, pools
from megatron_longrope2.training.batch import next_batch
from megatron_longrope2.training.loss import window_loss


def train() -> None:
    """Parse the command line, build and train.

    Raises:
        InputError: as `parse_training_arguments` and `MixedWindowDataset`, before any step is taken.
    """
    args = parse_training_arguments()
    # Data loaders on every pipeline stage's first tensor-parallel rank: each needs the document boundaries.
    datasets.is_distributed = True  # type: ignore[attr-defined]
    pretrain(
        pretrain_cfg_container_from_args(args, model_config(args)),
        datasets,
        ModelType.encoder_or_decoder,
        forward_step,
        store=rendezvous_store(),
    )


def forward_step(iterator: Iterator[dict[str, Tensor]], model: GPTModel) -> tuple[Tensor, Callable[..., Any]]:
    """One micro-batch through this pipeline stage."""
    args, timers = get_args(), get_timers()
    timers("batch-generator", log_level=2).start()
    batch = next_batch(iterator, args)
    update_seqlen_stats_from_cu_seqlens(batch.packed.cu_seqlens_q)
    timers("batch-generator").stop()
    output = model(
        batch.tokens, batch.position_ids, None, labels=batch.labels, packed_seq_params=batch.packed
    )
    return output, partial(window_loss, batch, args.original_length, args.check_for_nan_in_loss_and_grad)


def datasets(
    samples: list[int], vp_stage: int | None = None
) -> tuple[MixedWindowDataset | None, MixedWindowDataset | None, None]:
    """Training and validation datasets of this rank; `samples` counts segments of the whole run."""
    args = get_args()
    if mpu.get_tensor_model_parallel_rank() != 0:
        return None, None, None
    training = _dataset(args, args.pool, samples[0], Split.train)
    if vp_stage in (None, 0):
        print_rank_0(format_statistics(training.statistics()))
    validation = _dataset(args, args.valid_pool, samples[1], Split.valid) if args.valid_pool else None
    return training, validation, None


def _dataset(args: Namespace, given: list[list[str]], samples: int, split: Split) -> MixedWindowDataset:
    config = MixedWindowConfig(
        pools=pools(given),
        original_length=args.original_length,
        target_length=args.seq_length,
        global_batch_size=args.global_batch_size,
        seed=args.seed,
        context_parallel_size=args.context_parallel_size,
        sequence_parallel_size=args.tensor_model_parallel_size if args.sequence_parallel else 1,
        long_window_attention=args.long_window_attention,
        repeat=args.repeat_data or split is Split.valid,
    )
    return MixedWindowDataset(config, samples, pad_id=0, split=split)
