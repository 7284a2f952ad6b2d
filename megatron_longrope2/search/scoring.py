"""Scores of tokens on a Megatron model in any parallel layout, with logits of the scored tokens only."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.context_parallel import local_token_indices
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.scoring.last_layer import can_restrict, only_rows
from megatron_longrope2.scoring.samples import Sample

LOGIT_ROWS = 1024
"""Positions whose logits exist at once: [LOGIT_ROWS, vocabulary / tensor parallel size]."""

Job = tuple[RopeFactors, Sample]
OfLogits = Callable[[Tensor, Tensor], Tensor]
"""Scores [n, ...] of n tokens, from this tensor-parallel rank's logits float32 [n, vocabulary / tensor
parallel size], where padding has -inf, and the tokens int64 [n]; the logits may be used up."""


@dataclass(frozen=True)
class LocalSample:
    """What this context-parallel rank holds of a sample of T tokens.

    Attributes:
        tokens, positions: int64 [1, T / cp], zig-zag chunks `r` and `2 * cp - 1 - r`.
        rows: int64 [n], places in the local order whose next token is scored.
        labels: int64 [n], those next tokens.
    """

    tokens: Tensor
    positions: Tensor
    rows: Tensor
    labels: Tensor


def local_sample(sample: Sample) -> LocalSample:
    """This rank's part of a sample, on its device.

    Raises:
        InputError: T cannot be divided among the ranks.
    """
    size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
    length = len(sample.tokens)
    if size > 1 and length % (2 * size):
        raise InputError(
            f"--target-length: {length} is not a multiple of {2 * size}, twice the context parallel size"
        )
    device = torch.device(torch.cuda.current_device())
    tokens, mask = sample.tokens.to(device), sample.mask.to(device)
    positions = torch.arange(length, device=device)
    if size > 1:
        positions = local_token_indices(torch.tensor([0, length], device=device), size, rank)
    following = (positions + 1).clamp(max=length - 1)
    rows = (mask[following] & (positions + 1 < length)).nonzero().squeeze(1)
    return LocalSample(tokens[positions][None], positions[None], rows, tokens[following][rows])


def nll_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihoods float32 [n]; see `OfLogits`."""
    if mpu.get_tensor_model_parallel_world_size() == 1:
        return F.cross_entropy(logits, labels, reduction="none")  # without three collectives of one rank
    return vocab_parallel_cross_entropy(logits[:, None], labels[:, None])[:, 0]


def token_scores(
    model: GPTModel,
    local: LocalSample,
    vocab_size: int,
    restrict: bool = True,
    of_logits: OfLogits = nll_of_logits,
) -> Tensor:
    """Forward pass of one pipeline stage: on the last, scores of the scored tokens.

    Args:
        model: a model chunk; its rotary embedding holds the factors.
        vocab_size: real size; Megatron pads the vocabulary with rows that give logit 0.
        restrict: let the last layer work for the scored tokens only, where that is exact.
        of_logits: what a score is.

    Returns:
        What `of_logits` gives on the last stage, else hidden states for the next one. Differentiable.
    """
    restrict = restrict and can_restrict(model, len(local.rows))
    with only_rows(model, local.rows) if restrict else nullcontext():
        return stage_output(model, local, vocab_size, restrict, of_logits)


def stage_output(
    model: GPTModel,
    local: LocalSample,
    vocab_size: int,
    restricted: bool,
    of_logits: OfLogits = nll_of_logits,
) -> Tensor:
    """What `token_scores` returns; `restricted` tells whether it is called within `only_rows`."""
    processor = partial(
        _scores_of_rows,
        rows=None if restricted else local.rows,
        scored_labels=local.labels,
        vocab_size=vocab_size,
        of_logits=of_logits,
    )
    return model(local.tokens, local.positions, None, output_processor=processor)


def _scores_of_rows(
    *,
    rows: Tensor | None,
    scored_labels: Tensor,
    vocab_size: int,
    of_logits: OfLogits,
    hidden_states: Tensor,
    output_layer: torch.nn.Module,
    output_weight: Tensor | None,
    scale_logits: Any,
    config: Any,
    **_: Any,
) -> Tensor:
    """Megatron's `output_processor`: hidden_states [T / cp (/ tp), 1, hidden] to scores [n, ...]."""
    if config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden_states)
    else:
        hidden = copy_to_tensor_model_parallel_region(hidden_states)
    hidden = hidden[:, 0] if rows is None else hidden[rows, 0]
    weight = output_layer.weight if output_weight is None else output_weight
    # Megatron pads the vocabulary with rows that give logit 0: this rank's rows from here on.
    padding_start = min(max(vocab_size - mpu.get_tensor_model_parallel_rank() * len(weight), 0), len(weight))
    scores = []
    for part, labels in zip(hidden.split(LOGIT_ROWS), scored_labels.split(LOGIT_ROWS), strict=True):
        logits = scale_logits(F.linear(part, weight)).float()
        logits[:, padding_start:] = -torch.inf
        scores.append(of_logits(logits, labels))
    return torch.cat(scores)


def forward_in_turn[Item](
    model: LoadedModel,
    items: Sequence[Item],
    length: int,
    forward: Callable[[GPTModel, Item], Tensor],
) -> list[Tensor]:
    """Send items through the pipeline as micro-batches.

    Args:
        items: of samples that have `length` tokens.
        forward: an item's pass through one stage, such as `token_scores`.

    Returns:
        What `forward` gave for each item on the last stage; elsewhere an empty list.
    """
    remaining = iter(items)

    def forward_step(_: Any, chunk: GPTModel) -> tuple[Tensor, Any]:
        output = forward(chunk, next(remaining))
        return output, lambda scores, non_loss_data: scores  # noqa: ARG005 - upstream's signature

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=None,
        model=model.chunks,
        num_microbatches=len(items),
        seq_length=length,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )


class ModelScorer:
    """The `objective.Scorer` of a Megatron model; every rank of the job calls it with the same pairs.

    Pairs are dealt to the data-parallel groups in turn; a group sends its pairs through its pipeline as
    micro-batches.

    Args:
        model: from `load_model`.
        restrict_last_layer: see `last_layer`; False for comparison.
    """

    def __init__(self, model: LoadedModel, restrict_last_layer: bool = True) -> None:
        self.model = model
        self.restrict = restrict_last_layer
        self.vocab_size = int(model.args.vocab_size)
        self.forward_tokens = 0
        """Tokens that this rank's group has put through the model."""

    @property
    def workers(self) -> int:
        """Pairs that keep all ranks busy: one a data-parallel group and pipeline stage."""
        return mpu.get_data_parallel_world_size() * mpu.get_pipeline_model_parallel_world_size()

    def __call__(self, jobs: Sequence[Job]) -> list[float]:
        """Summed negative log-likelihood of each pair's scored tokens, >= 0, the same on every rank.

        Raises:
            InputError: a sample's length does not suit the layout.
        """
        groups, group = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
        totals = torch.zeros(len(jobs), dtype=torch.float64, device=torch.device(torch.cuda.current_device()))
        if mine := jobs[group::groups]:
            losses = self._run(mine)
            # One rank of each tensor-parallel group reports; context-parallel ranks each report their part.
            if mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0:
                totals[group::groups] = torch.stack([loss.clamp(min=0).double().sum() for loss in losses])
        dist.all_reduce(totals)
        return totals.tolist()

    @torch.no_grad()
    def _run(self, jobs: Sequence[Job]) -> list[Tensor]:
        """The token losses of this group's pairs on the last stage; elsewhere an empty list."""
        length = len(jobs[0][1].tokens)
        self.forward_tokens += sum(len(sample.tokens) for _, sample in jobs)

        def forward(chunk: GPTModel, job: Job) -> Tensor:
            factors, sample = job
            if chunk.rotary_pos_emb.factors is not factors:
                chunk.rotary_pos_emb.set_factors(factors)
            return token_scores(chunk, local_sample(sample), self.vocab_size, self.restrict)

        return forward_in_turn(self.model, jobs, length, forward)
