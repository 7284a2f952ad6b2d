"""The arguments of mixed context window training, beside Megatron's own."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from typing import Any

from megatron.training.utils import warn_rank_0

from megatron_longrope2.data.mix import load_mix_pools
from megatron_longrope2.data.pools import Pool
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.arguments import add_model_arguments, factors_of, parse_model_arguments
from megatron_longrope2.rope import AttentionFactor, RopeFactors
from megatron_longrope2.training.learned_factors import add_factor_arguments, check_factor_arguments

# Upstream averages the loss over micro-batches and context-parallel ranks as if each held as many tokens with
# a loss. Packed segments do not: only a loss per token is the same in every parallel layout.
# Throughput and perplexity are logged without asking.
FORCED: dict[str, Any] = {
    "calculate_per_token_loss": True,
    "log_throughput": True,
    "log_timers_to_tensorboard": True,
    "log_validation_ppl_to_tensorboard": True,
}
DEFAULTS: dict[str, Any] = {"dataloader_type": "single", "eval_interval": 1000, "save_interval": 100}


def add_training_arguments(parser: ArgumentParser) -> ArgumentParser:
    """Our arguments; hand this to Megatron as `extra_args_provider`."""
    parser = add_model_arguments(parser)
    group = parser.add_argument_group("LongRoPE2 mixed context window training")
    for option, what in (("--pool", "training"), ("--valid-pool", "validation")):
        group.add_argument(
            option,
            nargs=3,
            action="append",
            default=[],
            metavar=("WINDOW", "WEIGHT", "PREFIX"),
            help=f"{what} documents of one window (short or long), their share of the segments (a whole "
            "number), and the path of the .bin and .idx without suffix; may be repeated",
        )
    group.add_argument(
        "--mix",
        metavar="FILE",
        help="mix.json of `longrope2-preprocess --mix`: training pools with their shares; may stand beside "
        "--pool",
    )
    group.add_argument(
        "--long-window-attention",
        choices=("full", "document"),
        default="full",
        help="attention of long segments: over the whole segment (the paper), or inside each document (the "
        "authors' code); default: %(default)s",
    )
    group.add_argument(
        "--single-window",
        action="store_true",
        help="ablation: the rescaled RoPE on every document, whatever its length",
    )
    group.add_argument(
        "--repeat-data",
        action="store_true",
        help="read a pool again, in another order, when the run needs more segments than it has",
    )
    add_factor_arguments(parser)
    return parser


def parse_training_arguments() -> Namespace:
    """Megatron's arguments and ours, completed from checkpoint and device, and checked.

    Raises:
        InputError: no pool; a target length shorter than a segment; an unfit checkpoint or factor file; W&B
            without TensorBoard.
    """
    args = parse_model_arguments(add_training_arguments, DEFAULTS, FORCED)
    if args.wandb_project and not args.tensorboard_dir:
        raise InputError(
            "--wandb-project: Megatron gives W&B the losses only where it writes them for TensorBoard too; "
            "add --tensorboard-dir"
        )
    if not args.valid_pool:
        args.eval_iters = 0
    check_factor_arguments(args)
    if args.single_window:
        args.longrope2_factors = rescaled_everywhere(factors_of(args)).to_dict()
    if args.apply_rope_fusion and (args.micro_batch_size > 1 or args.long_window_attention == "document"):
        # Transformer Engine's kernel takes one table for the whole pack.
        warn_rank_0("RoPE fusion is off: one pack may hold documents of both windows")
        args.apply_rope_fusion = False
    if args.pipeline_model_parallel_size > 1 and args.micro_batch_size > 1:
        # A pack is one row of all the micro-batch's tokens; pipeline stages would expect the rows apart.
        args.variable_seq_lengths = True
        # Upstream refuses that with its default expert dispatcher, experts or not.
        args.moe_token_dispatcher_type = "alltoall"
    if not training_pools(args).pools:
        raise InputError("--pool: no training documents; give --mix, or e.g. --pool long 1 data/long")
    target = args.longrope2_factors["target_length"]
    if args.seq_length > target:
        raise InputError(
            f"--seq-length: {args.seq_length} is longer than the {target} tokens that the RoPE factors were "
            "made for; use factors for a longer target"
        )
    return args


def rescaled_everywhere(factors: RopeFactors) -> RopeFactors:
    """Factors whose short window is rescaled like the long one."""
    long = factors.attention_factor.long
    return replace(
        factors, short_factor=factors.long_factor, attention_factor=AttentionFactor(short=long, long=long)
    )


@dataclass(frozen=True)
class TrainingPools:
    """Where training documents come from, and whether a pool may be read more than once."""

    pools: tuple[Pool, ...]
    repeat: bool


def training_pools(args: Namespace) -> TrainingPools:
    """The pools of `--mix` and `--pool`, with the weights that each of them says.

    Raises:
        InputError: as `load_mix_pools`; a weight that is no whole number, or an unknown window.
    """
    mixed, repeat = load_mix_pools(args.mix) if args.mix else ((), False)
    return TrainingPools((*mixed, *_pools("--pool", args.pool)), repeat or args.repeat_data)


def validation_pools(args: Namespace) -> tuple[Pool, ...]:
    """The pools of `--valid-pool`; InputError as `training_pools`."""
    return _pools("--valid-pool", args.valid_pool)


def _pools(option: str, given: list[list[str]]) -> tuple[Pool, ...]:
    result = []
    for window, weight, prefix in given:
        if not weight.isdecimal():
            raise InputError(f"{option} {window} {weight} {prefix}: weight: {weight!r} is not a whole number")
        result.append(Pool(path_prefix=prefix, window=window, weight=int(weight)))  # type: ignore[arg-type]
    return tuple(result)
