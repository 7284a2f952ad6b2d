"""Megatron's arguments, completed from the checkpoint and the device, and the model configuration of them."""

import importlib.util
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import docstring_parser
from megatron.core import dist_checkpointing
from megatron.training.argument_utils import ArgumentGroupFactory, gpt_config_from_args
from megatron.training.arguments import parse_args, validate_args
from megatron.training.checkpointing import (
    checkpoint_exists,
    get_load_checkpoint_path_by_args,
    load_args_from_checkpoint,
)
from megatron.training.global_vars import set_global_variables

from megatron_longrope2.device import distributed_backend, has_gpu
from megatron_longrope2.errors import InputError, one_line
from megatron_longrope2.model.builder import LongRoPE2ModelConfig
from megatron_longrope2.model.settings import ModelSettings
from megatron_longrope2.rope import RopeFactors, load_factors, make_factors


def add_settings(parser: ArgumentParser, settings: type) -> None:
    """Give a parser the fields of a settings dataclass as options; the class docstring is their help."""
    documented = docstring_parser.parse(settings.__doc__ or "")
    group = ArgumentGroupFactory(settings)
    group.field_docstrings = {
        entry.arg_name: (entry.description or "").replace("%", "%%") for entry in documented.params
    }
    group.build_group(parser, (documented.short_description or "").rstrip(".")).description = None


def add_model_arguments(parser: ArgumentParser) -> ArgumentParser:
    """Add the options of the rescaled RoPE; hand this to Megatron as `extra_args_provider`."""
    parser.error = _refuse  # type: ignore[method-assign]
    add_settings(parser, ModelSettings)
    return parser


def _refuse(message: str) -> NoReturn:
    """In place of argparse's exit, which prints all of Megatron's options first."""
    raise InputError(f"Megatron's arguments: {message}; `longrope2 train --help-megatron` lists them")


def parse_model_arguments(
    add_arguments: Callable[[ArgumentParser], ArgumentParser] = add_model_arguments,
    defaults: dict[str, Any] | None = None,
    forced: dict[str, Any] | None = None,
) -> Namespace:
    """Parse `sys.argv` as Megatron does; the model's shape and factors come from the checkpoint, if any.

    The resolved factors are left in `args.longrope2_factors` (a dict, so that every checkpoint that Megatron
    saves carries them).

    Args:
        add_arguments: adds a command's own arguments to the parser.
        defaults: values of arguments that were not given, as upstream's `args_defaults`.
        forced: values that the command needs, whatever was given.

    Raises:
        InputError: an argument that Megatron does not know or accept, no checkpoint where one is named, or
            factors that are missing, invalid or another model's.
    """
    with _in_one_line():
        args = parse_args(add_arguments)
    args.longrope2_factors = None
    vars(args).update(forced or {})
    _adapt_to_device(args)
    source = _checkpoint_source(args)
    if source is not None:
        _load_checkpoint_args(args, source)
    if args.original_length is None and args.longrope2_factors is None:
        args.original_length = args.max_position_embeddings
    if args.seq_length is not None and args.max_position_embeddings is not None:
        # Upstream refuses sequences beyond it; for us it is what the rescaled angles reach.
        args.max_position_embeddings = max(args.max_position_embeddings, args.seq_length)
    with _in_one_line():
        validate_args(args, dict(defaults or {}))
    args.longrope2_factors = resolve_factors(args).to_dict()
    args.original_length = args.longrope2_factors["original_length"]
    set_global_variables(args)
    return args


def model_config(args: Namespace) -> LongRoPE2ModelConfig:
    """The model configuration of parsed arguments.

    Raises:
        InputError: arguments that Megatron cannot combine, or the factors are another model's.
    """
    with _in_one_line():
        config = gpt_config_from_args(args)
    return LongRoPE2ModelConfig(rope_factors=factors_of(args), **vars(config))


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Within, what upstream says of arguments becomes an InputError.

    It checks with bare asserts, many without a message: the condition then says what is missing. A choice
    that an enumeration does not have is a KeyError.
    """
    try:
        yield
    except (AssertionError, KeyError, ValueError) as error:
        message = one_line(error) if str(error) else traceback.extract_tb(error.__traceback__)[-1].line
        if isinstance(error, KeyError):
            message = f"{error} is none of the choices"
        raise InputError(f"Megatron's arguments: {message}") from error


def factors_of(args: Namespace) -> RopeFactors:
    """The factors that `parse_model_arguments` resolved."""
    return RopeFactors.from_dict(args.longrope2_factors, source="longrope2_factors")


def resolve_factors(args: Namespace) -> RopeFactors:
    """`--rope-factors`, else the checkpoint's, else factors of 1 for twice the original length or more.

    Raises:
        InputError: as `load_factors`; or the original length is not known or contradicts the factors.
    """
    if args.rope_factors is not None:
        factors = load_factors(args.rope_factors, rope_base=args.rotary_base)
    elif args.longrope2_factors is not None:
        factors = RopeFactors.from_dict(args.longrope2_factors, source=f"{args.load}: longrope2_factors")
    else:
        factors = make_factors(
            "none",
            rope_base=args.rotary_base,
            rotary_dim=int(args.kv_channels * args.rotary_percent),
            original_length=args.original_length,
            target_length=max(args.seq_length, 2 * args.original_length),
        )
    if args.original_length not in (None, factors.original_length):
        raise InputError(
            f"{args.rope_factors or args.load}: original_length: {factors.original_length} is not the "
            f"model's {args.original_length}; use factors made for this model, or pass --original-length"
        )
    return factors


def _checkpoint_source(args: Namespace) -> str | None:
    """Which of `--load` and `--pretrained-checkpoint` tells the model's shape.

    Raises:
        InputError: a folder is named, and neither holds a checkpoint. The first of several runs may name the
            empty folder that it saves to as `--load`.
    """
    for name in ("load", "pretrained_checkpoint"):
        if checkpoint_exists(getattr(args, name)):
            return name
    if args.pretrained_checkpoint is not None or (args.load is not None and args.load != args.save):
        where = args.pretrained_checkpoint or args.load
        option = "--pretrained-checkpoint" if args.pretrained_checkpoint else "--load"
        raise InputError(
            f"{where}: no Megatron checkpoint there (latest_checkpointed_iteration.txt is missing); "
            f"give {option} a folder that `longrope2 import` or `longrope2 train` wrote"
        )
    return None


def _load_checkpoint_args(args: Namespace, source: str) -> None:
    folder = getattr(args, source)
    try:
        load_args_from_checkpoint(args, load_arg=source)
        path = get_load_checkpoint_path_by_args(args, load_arg=source)
        saved = dist_checkpointing.load_common_state_dict(path)["args"]
    # Upstream's and torch's readers raise anything in a damaged folder; SystemExit for a broken tracker file.
    except (Exception, SystemExit) as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(
            f"{folder}: the checkpoint cannot be read ({reason}); copy it again, or give an earlier one with "
            "--ckpt-step"
        ) from error
    # Upstream's `load_args_from_checkpoint` restores neither these parts of the model nor our arguments.
    for name in ("layernorm_epsilon", "qk_layernorm"):
        setattr(args, name, getattr(saved, name, getattr(args, name)))
    for name in ("vocab_size", "original_length", "longrope2_factors"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(saved, name, None))
    args.tokenizer_model = _tokenizer_model(args.tokenizer_model, Path(folder))


def _tokenizer_model(recorded: str | None, folder: Path) -> str | None:
    """The tokenizer that a checkpoint names, or the one beside its weights if that path is another machine's.

    Raises:
        InputError: neither exists.
    """
    if recorded is None or not Path(recorded).is_absolute() or Path(recorded).exists():
        return recorded
    beside = folder / "tokenizer"
    if not beside.is_dir():
        raise InputError(
            f"{folder}: tokenizer_model: {recorded} is gone; copy the tokenizer's files to {beside}"
        )
    return str(beside)


def _adapt_to_device(args: Namespace) -> None:
    """Turn off what this machine has no kernels for.

    Raises:
        InputError: there is a GPU, and Transformer Engine is neither installed nor declined; or torch's
            layers are to compute in 8 or 4 bits.
    """
    if has_gpu():
        if args.transformer_impl == "transformer_engine" and not importlib.util.find_spec(
            "transformer_engine"
        ):
            raise InputError(
                "--transformer-impl: Transformer Engine is not installed; install the `gpu` extra, "
                "or pass --transformer-impl local"
            )
        if not importlib.util.find_spec("fused_weight_gradient_mlp_cuda"):
            args.gradient_accumulation_fusion = False  # upstream's default needs this extension of Apex
    else:
        args.transformer_impl = "local"
        args.distributed_backend = distributed_backend()
        args.gradient_accumulation_fusion = False
        args.masked_softmax_fusion = False
    if args.transformer_impl == "local":
        if args.fp8 or args.fp4:
            raise InputError(
                "--fp8-format, --fp4-format: torch's layers would ignore it; leave it out, or use a GPU and "
                "Transformer Engine's layers (--transformer-impl transformer_engine)"
            )
        args.apply_rope_fusion = False
        args.no_persist_layer_norm = True
