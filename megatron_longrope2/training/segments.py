"""The training and validation segments of a run, opened before Megatron is initialised."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megatron.core.datasets.utils import Split
from megatron.training import get_tokenizer
from megatron.training.utils import print_rank_0
from torch.utils.data import ConcatDataset

from megatron_longrope2.data.manifest import Pool
from megatron_longrope2.data.segments import SegmentConfig, SegmentDataset
from megatron_longrope2.errors import InputError
from megatron_longrope2.training.arguments import training_pools, validation_pools

Provider = Callable[..., tuple[SegmentDataset | None, ConcatDataset[Any] | None, None]]


def segment_provider(args: Namespace) -> Provider:
    """Open the pools; return the function that hands their segments to Megatron.

    Raises:
        InputError: as `SegmentDataset`; a run without a length, or with lengths that do not fit.
    """
    if args.seq_length <= args.original_length:
        raise InputError(
            f"--seq-length: {args.seq_length} is not longer than the original length {args.original_length}; "
            "give the target length"
        )
    needed = args.train_samples or (args.train_iters or 0) * args.global_batch_size
    if not needed:
        raise InputError("--train-iters: the run's length is missing; give --train-iters or --train-samples")
    pools, repeat = training_pools(args)
    # Validation reads short documents one by one, as inference does, and batches of another size.
    config = replace(
        _config(args, pools, repeat=repeat),
        single_window=args.single_window,
        data_parallel_size=args.data_parallel_size,
    )
    training = SegmentDataset(config, needed, pad_id=0)
    validation = None
    if args.eval_iters:
        one_pass = args.eval_iters * args.eval_global_batch_size
        validation = SegmentDataset(_config(args, validation_pools(args), repeat=True), one_pass, pad_id=0)

    def provide(samples: list[int], vp_stage: int | None = None) -> Any:
        if vp_stage in (None, 0):
            print_rank_0(training.table())
        passes = None
        if validation:
            # Every pass reads the same segments, so that losses can be compared. There is one pass more than
            # the run needs: a run that is complete may still ask for the last one again.
            passes = ConcatDataset([validation] * (samples[1] // len(validation) + 1))
            passes.split = Split.valid  # so that Megatron makes evaluation's batches of it
        done = args.consumed_train_samples >= needed
        return None if done else training, passes, None

    # Every rank has a data loader: each needs the documents' boundaries on the host.
    provide.is_distributed = True  # type: ignore[attr-defined]
    return provide


def _config(args: Namespace, pools: tuple[Pool, ...], *, repeat: bool) -> SegmentConfig:
    return SegmentConfig(
        pools=pools,
        original_length=args.original_length,
        target_length=args.seq_length,
        global_batch_size=args.global_batch_size,
        seed=args.seed,
        context_parallel_size=args.context_parallel_size,
        sequence_parallel_size=args.tensor_model_parallel_size if args.sequence_parallel else 1,
        micro_batch_size=args.micro_batch_size,
        long_window_attention=args.long_window_attention,
        repeat=repeat,
        vocab_size=args.vocab_size or get_tokenizer().vocab_size,
        tokenizer=args.tokenizer_model,
    )
