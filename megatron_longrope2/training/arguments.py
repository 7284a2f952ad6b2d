"""The arguments of mixed context window training, beside Megatron's own."""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron.training.arguments import add_megatron_arguments

from megatron_longrope2.data.manifest import Pool, load_mix_pools
from megatron_longrope2.errors import InputError, naming
from megatron_longrope2.model.arguments import (
    add_model_arguments,
    add_settings,
    factors_of,
    parse_model_arguments,
)
from megatron_longrope2.rope import AttentionFactor, RopeFactors
from megatron_longrope2.training.settings import FactorTrainingSettings, MixedWindowSettings

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
    """Add our options; hand this to Megatron as `extra_args_provider`."""
    parser = add_model_arguments(parser)
    for settings in (MixedWindowSettings, FactorTrainingSettings):
        add_settings(parser, settings)
    return parser


def full_help() -> str:
    """The help of all options, Megatron's included."""
    parser = add_training_arguments(add_megatron_arguments(ArgumentParser("longrope2 train")))
    for action in parser._actions:
        # Megatron's help has percent signs that argparse takes for the start of a format.
        action.help = re.sub(r"(?<!%)%(?![%(])", "%%", action.help or "")
    return parser.format_help()


def parse_training_arguments(forced: Mapping[str, Any] | None = None) -> Namespace:
    """Megatron's arguments and ours, completed from checkpoint and device, and checked.

    Args:
        forced: values that count whatever was given.

    Raises:
        InputError: no pool; a target length shorter than a segment; an unfit checkpoint or factor file; W&B
            without TensorBoard; options that cannot be combined.
    """
    args = parse_model_arguments(add_training_arguments, DEFAULTS, {**FORCED, **(forced or {})})
    _check(args)
    if args.single_window:
        args.longrope2_factors = rescaled_everywhere(factors_of(args)).to_dict()
    if not args.valid_pool:
        args.eval_iters = 0
    if args.train_rope_factors:
        args.apply_rope_fusion = False  # the fused kernel has no gradient for the angles
    if args.pipeline_model_parallel_size > 1 and args.micro_batch_size > 1:
        # A pack is one row of all the micro-batch's tokens; pipeline stages would expect the rows apart.
        args.variable_seq_lengths = True
        # Upstream refuses that with its default expert dispatcher, experts or not.
        args.moe_token_dispatcher_type = "alltoall"
    return args


def _check(args: Namespace) -> None:
    if args.wandb_project and not args.tensorboard_dir:
        raise InputError(
            "--wandb-project: Megatron gives W&B the losses only where it writes them for TensorBoard too; "
            "add --tensorboard-dir"
        )
    if not training_pools(args)[0]:
        raise InputError("--pool: no training documents; give --mix, or e.g. --pool long 1 data/long")
    target = args.longrope2_factors["target_length"]
    if args.seq_length > target:
        raise InputError(
            f"--seq-length: {args.seq_length} is longer than the {target} tokens that the RoPE factors were "
            "made for; use factors for a longer target"
        )
    if args.train_rope_factors and args.single_window:
        raise InputError(
            "--train-rope-factors: only the long window's are learned; leave --single-window out"
        )
    if args.train_rope_factors and args.fp16:
        raise InputError("--train-rope-factors: their gradient knows no loss scale; use --bf16 for --fp16")
    if not 0 < args.rope_factors_lr < float("inf"):
        raise InputError(f"--rope-factors-lr: {args.rope_factors_lr:g} is not a positive number")


def rescaled_everywhere(factors: RopeFactors) -> RopeFactors:
    """Factors whose short window is rescaled like the long one."""
    long = factors.attention_factor.long
    return replace(
        factors, short_factor=factors.long_factor, attention_factor=AttentionFactor(short=long, long=long)
    )


def training_pools(args: Namespace) -> tuple[tuple[Pool, ...], bool]:
    """The pools of `--mix` and `--pool` with their shares, and whether one may be read more than once.

    Raises:
        InputError: as `load_mix_pools`; a share that is no whole number, or an unknown window.
    """
    mixed, repeat = load_mix_pools(args.mix) if args.mix else ((), False)
    return (*mixed, *_pools("--pool", args.pool)), repeat or args.repeat_data


def validation_pools(args: Namespace) -> tuple[Pool, ...]:
    """The pools of `--valid-pool`; InputError as `training_pools`."""
    return _pools("--valid-pool", args.valid_pool)


def _pools(option: str, given: list[list[str]]) -> tuple[Pool, ...]:
    with naming(option):
        return tuple(
            Pool(path_prefix=prefix, window=window, weight=weight)  # type: ignore[arg-type]
            for window, weight, prefix in given
        )
