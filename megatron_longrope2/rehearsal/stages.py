"""What one rank does in each stage of a job: the real commands' code, on a model without weights."""

import os
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from megatron.core.transformer.attention import Attention
from megatron.training import training
from torch import Tensor
from torch.utils.data import Dataset

from megatron_longrope2.cli import longrope2
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.generation import generate
from megatron_longrope2.evaluation.settings import GenerationSettings
from megatron_longrope2.model.arguments import model_config
from megatron_longrope2.model.learned_factors import LearnedFactors
from megatron_longrope2.model.loading import LoadedModel, make_model
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.rehearsal.meter import Meter
from megatron_longrope2.scoring.megatron import MegatronScorer
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.search.needle_loss import NeedleLoss
from megatron_longrope2.search.run import model_arguments
from megatron_longrope2.search.settings import SearchSettings
from megatron_longrope2.training.arguments import parse_training_arguments
from megatron_longrope2.training.loop import run

# Tokens of a needle's answer, and tokens that are generated after a prompt.
ANSWER = 8
NEW_TOKENS = 3

# How many of the small documents of a pack are as long as the original length.
SMALL = 8


def _filled(documents: list[int], length: int, small: int) -> list[int]:
    """The documents, small ones after them, and one that fills the pack."""
    count, rest = divmod(length - sum(documents), small)
    return [*documents, *[small] * count, *([rest] if rest else [])]


# The micro-batches of a step, from the segment's length and that of a small document: a long document, many
# small ones, both.
PACKS: tuple[Callable[[int, int], list[int]], ...] = (
    lambda length, _: [length],
    lambda length, small: _filled([], length, small),
    lambda length, small: _filled([length // 2], length, small),
)


def numbers(words: Sequence[str], *options: str) -> tuple[int, ...]:
    """What a command's words say of options that are numbers, and 1 where they say nothing.

    Raises:
        InputError: one is no number.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in options:
        parser.add_argument(option, type=int, default=1)
    try:
        return tuple(vars(parser.parse_known_args(list(words))[0]).values())
    except ArgumentError as error:
        raise InputError(str(error)) from error


def layout_of(words: Sequence[str]) -> tuple[int, ...]:
    """Tensor, pipeline and context parallel size in a command's words; InputError as `numbers`."""
    model = [f"--{kind}-model-parallel-size" for kind in ("tensor", "pipeline")]
    return numbers(words, *model, "--context-parallel-size")


def train(words: Sequence[str], target: int, shape: dict[str, Any], meter: Meter) -> None:
    """A step of training: a long segment, a pack of many documents, one of both windows, and the optimizer.

    Args:
        words: the options of `longrope2 train`. What they say of data, checkpoints, schedule and the size of
            the global batch is left out.
        target: the extended window in tokens.
        shape: the model's arguments.
        meter: in which it is run.
    """
    tensor, pipeline, context = layout_of(words)
    data = int(os.environ["WORLD_SIZE"]) // (tensor * pipeline * context)
    (micro_batch,) = numbers(words, "--micro-batch-size")
    if pipeline > 1 and micro_batch > 1:
        raise InputError(
            f"--micro-batch-size: {micro_batch}: pipeline stages would tell each other the sizes of their "
            "packs, which no rehearsal knows; rehearse it with 1"
        )
    # What the words do not say; of an option that is given twice, the last one counts.
    needed = ["--micro-batch-size", "1", "--seq-length", str(target), "--lr", "1e-5"]
    sys.argv = ["longrope2 train", *needed, *words]
    global_batch = micro_batch * data * max(len(PACKS), pipeline)
    args = parse_training_arguments({**shape, **_NO_RUN, "global_batch_size": global_batch})
    original, length = args.original_length, args.seq_length
    unit = 2 * context * tensor
    small = max(unit, original // SMALL // unit * unit)
    dataset = _Segments([pack(length, small) for pack in PACKS])

    def provide(_: Any, vp_stage: int | None = None) -> Any:  # noqa: ARG001 - upstream's signature
        return dataset, None, None

    provide.is_distributed = True  # type: ignore[attr-defined]
    set_up = training.setup_model_and_optimizer

    def set_up_and_label(*arguments: Any, **options: Any) -> Any:
        model, optimizer, scheduler = set_up(*arguments, **options)
        _label_training(meter, model, optimizer)
        return model, optimizer, scheduler

    training.setup_model_and_optimizer = set_up_and_label
    run(args, model_config(args), provide)


# What a rehearsal does not read, write or wait for; and a step instead of a run.
_NO_RUN: dict[str, Any] = {
    "load": None,
    "pretrained_checkpoint": None,
    "save": None,
    "rope_factors": None,
    "mix": None,
    "pool": [["short", "1", "none"], ["long", "1", "none"]],
    "valid_pool": [],
    "eval_iters": 0,
    "train_iters": 1,
    "train_samples": None,
    "rampup_batch_size": None,
    "lr_warmup_iters": 0,
    "lr_warmup_samples": 0,
    "lr_warmup_fraction": None,
    "lr_decay_iters": None,
    "lr_decay_samples": None,
    "tensorboard_dir": None,
    "wandb_project": "",
    "num_workers": 0,
    "rerun_mode": "disabled",
    "exit_signal_handler": False,
    "log_interval": 1,
}


def search(words: Sequence[str], target: int, shape: dict[str, Any], meter: Meter) -> None:  # noqa: ARG001
    """One candidate of the search, or one step of the gradient search."""
    _, bound, _ = longrope2().parse_args(["search", *words], exit_on_error=False, print_error=False)
    settings: SearchSettings = bound.arguments["settings"]
    length = settings.target_length
    model = _model(settings.layout, {**shape, **model_arguments(settings)}, length, meter)
    samples = [_sample(length, ANSWER)] * MegatronScorer(model).workers
    if settings.algorithm == "evolution":
        MegatronScorer(model)(samples, [model.factors] * len(samples))
        return
    NeedleLoss(model)(LearnedFactors(model.factors), samples)


def evaluate(words: Sequence[str], target: int, shape: dict[str, Any], meter: Meter) -> None:
    """The longest sample of a measurement, or a prompt and the first tokens after it."""
    _, bound, _ = longrope2().parse_args(["evaluate", *words], exit_on_error=False, print_error=False)
    given = bound.arguments
    layout = given["what"].layout if "what" in given else given.get("layout", LayoutSettings())
    settings = given.get("settings")
    sizes = [getattr(settings, name, None) for name in ("long_length", "max_length")]
    length = max(getattr(settings, "lengths", None) or [size or target for size in sizes])
    model = _model(layout, shape, length, meter)
    if words[0] in ("ruler", "generate"):
        generation = given.get("generation", GenerationSettings())
        prompts = [[1] * (length - NEW_TOKENS)] * (generation.batch_size or 1)
        generate(model, prompts, NEW_TOKENS, settings=generation)
    else:
        scorer = MegatronScorer(model)
        scorer([_sample(length, length if words[0] == "perplexity" else ANSWER)] * scorer.workers)


STAGES: dict[str, Callable[[Sequence[str], int, dict[str, Any], Meter], None]] = {
    "train": train,
    "search": search,
    "evaluate": evaluate,
}


def _model(layout: LayoutSettings, shape: dict[str, Any], length: int, meter: Meter) -> LoadedModel:
    # Without factors there are those of a target of this length.
    model = make_model(layout, **shape, seq_length=length)
    for chunk in model.chunks:
        meter.label(chunk.parameters(), "weights")
    allocate = Attention._allocate_memory

    def allocate_and_label(*arguments: Any) -> Tensor:
        memory = allocate(*arguments)
        meter.label([memory], "keys and values")
        return memory

    Attention._allocate_memory = allocate_and_label
    return model


def _sample(length: int, scored: int) -> Sample:
    return Sample(torch.ones(length, dtype=torch.int64), torch.arange(length) >= length - scored)


def _label_training(meter: Meter, model: Iterable[Any], optimizer: Any) -> None:
    for chunk in model:
        parameters = list(chunk.parameters())
        meter.label(parameters, "weights")
        meter.label([getattr(one, "main_grad", None) for one in parameters], "gradients")
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        # The first step would make them; the step that is rehearsed stands for all that follow.
        part.init_state_fn(part.optimizer, part.config)
        for group in part.optimizer.param_groups:
            meter.label(group["params"], "optimizer states")
        for state in part.optimizer.state.values():
            state.setdefault("step", torch.zeros(()))  # torch's Adam has one for each parameter, on the host
            meter.label(state.values(), "optimizer states")


class _Segments(Dataset[dict[str, Tensor]]):
    """Packs in turn, as the training dataset has them."""

    def __init__(self, packs: list[list[int]]) -> None:
        self._packs = packs
        self._width = 1 + max(map(len, packs))

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pack = self._packs[index % len(self._packs)]
        tokens = torch.ones(sum(pack), dtype=torch.int64)
        ends = [*accumulate(pack)]
        ends += [sum(pack)] * (self._width - 1 - len(ends))
        return {
            "tokens": tokens,
            "labels": tokens,
            "loss_mask": torch.ones(sum(pack)),
            "position_ids": tokens,
            "cu_seqlens": torch.tensor([0, *ends], dtype=torch.int32),
            "max_seqlen": torch.tensor(max(pack), dtype=torch.int32),
        }
