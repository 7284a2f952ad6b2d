"""One sample's forward pass through a pipeline stage, with logits of the scored tokens only."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor

from megatron_longrope2.data.samples import Sample
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.context_parallel import local_token_indices
from megatron_longrope2.scoring.scorer import LOGIT_ROWS

OfLogits = Callable[[Tensor, Tensor], Tensor]
"""Scores [n, ...] of n tokens, from this tensor-parallel rank's logits float32 [n, vocabulary / tensor
parallel size], where padding has -inf, and the tokens int64 [n]; it may overwrite the logits."""


@dataclass(frozen=True)
class LocalSample:
    """What this context-parallel rank holds of a sample of T tokens.

    Attributes:
        tokens, positions: int64 [1, T / cp], zig-zag chunks `r` and `2 * cp - 1 - r`.
        rows: int64 [n], places in the local order whose next token is scored.
        labels: int64 [n], those next tokens.
        numbers: int64 [n], which of the sample's scored tokens the labels are.
    """

    tokens: Tensor
    positions: Tensor
    rows: Tensor
    labels: Tensor
    numbers: Tensor


def local_sample(sample: Sample) -> LocalSample:
    """This rank's part of a sample, on its device.

    Raises:
        InputError: T cannot be divided among the ranks.
    """
    size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
    length = len(sample.tokens)
    if size > 1 and length % (2 * size):
        raise InputError(
            f"length: {length} tokens are not a multiple of {2 * size}, twice the context parallel size; "
            "change the length or the layout"
        )
    device = torch.device(torch.cuda.current_device())
    tokens, mask = sample.tokens.to(device), sample.mask.to(device)
    positions = torch.arange(length, device=device)
    if size > 1:
        positions = local_token_indices(torch.tensor([0, length], device=device), size, rank)
    following = (positions + 1).clamp(max=length - 1)
    rows = (mask[following] & (positions + 1 < length)).nonzero().squeeze(1)
    scored_before = mask[1:].cumsum(0) - 1
    return LocalSample(
        tokens[positions][None],
        positions[None],
        rows,
        tokens[following][rows],
        scored_before[positions[rows]],
    )


def nll_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihoods, float32 [n]; see `OfLogits`."""
    if mpu.get_tensor_model_parallel_world_size() == 1:
        return F.cross_entropy(logits, labels, reduction="none")  # without three collectives of one rank
    return vocab_parallel_cross_entropy(logits[:, None], labels[:, None])[:, 0]


def stage_output(
    model: GPTModel,
    local: LocalSample,
    vocab_size: int,
    *,
    restricted: bool,
    of_logits: OfLogits = nll_of_logits,
) -> Tensor:
    """Forward pass of one pipeline stage.

    Args:
        model: a model chunk; its rotary embedding holds the factors.
        vocab_size: real size; Megatron pads the vocabulary with rows that give logit 0.
        restricted: whether this is called within `last_layer.only_rows`.
        of_logits: what a score is.

    Returns:
        On the last stage what `of_logits` gives, on the others hidden states for the next one.
        Differentiable.
    """
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
    # This rank's rows of the vocabulary are padding from here on.
    padding_start = min(max(vocab_size - mpu.get_tensor_model_parallel_rank() * len(weight), 0), len(weight))
    scores = []
    for part, labels in zip(hidden.split(LOGIT_ROWS), scored_labels.split(LOGIT_ROWS), strict=True):
        logits = scale_logits(F.linear(part, weight)).float()
        logits[:, padding_start:] = -torch.inf
        scores.append(of_logits(logits, labels))
    return torch.cat(scores)
