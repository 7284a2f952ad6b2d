"""A Megatron model from a checkpoint, for everything but the trainer: search, evaluation, verification."""

import importlib.util
import logging
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from megatron.core import mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.rerun_state_machine import destroy_rerun_state_machine
from megatron.core.utils import unwrap_model
from megatron.training.checkpointing import load_checkpoint
from megatron.training.global_vars import destroy_global_vars
from megatron.training.initialize import initialize_megatron
from megatron.training.models.gpt import GPTModelConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_longrope2.device import rendezvous_store
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.arguments import factors_of, model_config, parse_model_arguments
from megatron_longrope2.model.rotary import LongRoPE2RotaryEmbedding
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.rope import RopeFactors


@dataclass(frozen=True)
class LoadedModel:
    """Model chunks of this rank in evaluation mode, with what belongs to them."""

    chunks: list[GPTModel]
    args: Namespace
    factors: RopeFactors

    @property
    def rotaries(self) -> list[LongRoPE2RotaryEmbedding]:
        """The rotary embeddings of this rank's chunks."""
        return [chunk.rotary_pos_emb for chunk in self.chunks]

    def set_factors(self, factors: RopeFactors) -> None:
        """Use other factors from the next forward pass on."""
        for rotary in self.rotaries:
            rotary.set_factors(factors)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the converter put beside the weights."""
        return AutoTokenizer.from_pretrained(self.args.tokenizer_model)


def load_model(
    load_dir: str | Path,
    layout: LayoutSettings = LayoutSettings(),
    *,
    rope_factors: str | Path | None = None,
    **arguments: Any,
) -> LoadedModel:
    """Initialise Megatron in this process (and its torchrun peers) and load a checkpoint.

    A process holds one model at a time: call `unload_model` before loading the next.

    Args:
        load_dir: folder that `longrope2 import` or `longrope2 train` wrote.
        layout: the parallel layout, and what else the user wants of Megatron.
        rope_factors: factor file or published name; default: what the checkpoint holds.
        arguments: further arguments of Megatron, by their names in its namespace.

    Raises:
        InputError: no checkpoint there, factors that do not fit it, or as `start_megatron`.
    """
    # Megatron prints its five hundred arguments and its progress; errors still pass.
    logging.getLogger("megatron").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_model(
            layout,
            load=str(load_dir),
            rope_factors=rope_factors,
            no_load_optim=True,
            no_load_rng=True,
            exit_on_missing_checkpoint=True,
            **arguments,
        )
        load_checkpoint(model.chunks, None, None)
    return model


def make_model(layout: LayoutSettings, **arguments: Any) -> LoadedModel:
    """Initialise Megatron and build a model in evaluation mode, with random weights.

    Args:
        layout: the parallel layout, and what else the user wants of Megatron.
        arguments: further arguments of Megatron, by their names in its namespace.

    Raises:
        InputError: as `start_megatron`.
    """
    args = start_megatron(
        layout.megatron,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        context_parallel_size=layout.context_parallel_size,
        bf16=layout.bf16,
        micro_batch_size=1,
        **arguments,
    )
    chunks = build(model_config(args))
    for chunk in chunks:
        chunk.eval()
        chunk.requires_grad_(False)
    return LoadedModel(chunks=chunks, args=args, factors=factors_of(args))


def start_megatron(words: Sequence[str] = (), **arguments: Any) -> Namespace:
    """Initialise Megatron in this process (and its torchrun peers), whatever `sys.argv`.

    Args:
        words: what the user wants of Megatron, as on the command line of training. Without a wish, the layers
            are Transformer Engine's where it is installed and the model is in half precision: its attention
            in float32 forms all scores, tokens x tokens.
        arguments: what the caller needs, by its names in Megatron's namespace.

    Raises:
        InputError: the two name the same argument, or as `parse_model_arguments`.
    """
    given = {word.partition("=")[0] for word in words}
    taken = given & {f"--{name.replace('_', '-')}" for name in arguments}
    if taken:
        raise InputError(
            f"--megatron: {min(taken)} is set by the command; give it before --megatron, if at all"
        )
    half_precision = arguments.get("bf16") or "--fp16" in given
    if not (half_precision and importlib.util.find_spec("transformer_engine")):
        words = ("--transformer-impl", "local", *words)
    command, sys.argv = sys.argv, [*sys.argv[:1], *words]
    try:
        args = parse_model_arguments(forced=arguments)
    finally:
        sys.argv = command
    initialize_megatron(allow_no_cuda=True, store=rendezvous_store())
    return args


def build(config: GPTModelConfig) -> list[GPTModel]:
    """The model chunks of this rank, with random weights."""
    builder: Any = config.get_builder_cls()(config)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return unwrap_model(builder.build_distributed_models(pg_collection=groups, wrap_with_ddp=False))


def unload_model() -> None:
    """Undo Megatron's set-up by `load_model`, if there was one, so that another checkpoint can be loaded.

    The caller must drop its references to the old model.
    """
    if mpu.model_parallel_is_initialized():
        mpu.destroy_model_parallel()
        destroy_num_microbatches_calculator()
        destroy_rerun_state_machine()
        destroy_global_vars()
