"""One sample's forward pass through a pipeline stage: last layer and logits of the scored tokens only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.pack import local_token_indices
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import LOGIT_ROWS

# With more scored tokens the last layer is whole: the causal mask, rows x tokens, would cost more than it
# saves.
MAX_ROWS = 512
# From this tensor-parallel rank's logits and the labels to what is kept of them, as `nll_and_correct`.
Read = Callable[[Tensor, Tensor], Tensor]


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
    # All of it on the host: how many rows are scored is then known without waiting for the device.
    tokens, mask, positions = sample.tokens, sample.mask, torch.arange(length)
    if size > 1:
        positions = local_token_indices(torch.tensor([0, length]), size, rank)
    following = (positions + 1).clamp(max=length - 1)
    rows = (mask[following] & (positions + 1 < length)).nonzero().squeeze(1)
    scored_before = mask[1:].cumsum(0) - 1
    parts = (
        tokens[positions][None],
        positions[None],
        rows,
        tokens[following][rows],
        scored_before[positions[rows]],
    )
    return LocalSample(*(part.to(torch.cuda.current_device()) for part in parts))


def nll_and_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihoods, and 1 where the label is the most likely token, else 0; float32 [n, 2].

    Args:
        logits: this tensor-parallel rank's, float32 [n, vocabulary / tensor parallel size], where padding has
            -inf; they may be overwritten.
        labels: int64 [n].
    """
    first = mpu.get_tensor_model_parallel_rank() * logits.shape[1]
    split = mpu.get_tensor_model_parallel_world_size() > 1
    with torch.no_grad():
        own = (labels >= first) & (labels < first + logits.shape[1])
        at_label = logits.gather(1, torch.where(own, labels - first, 0)[:, None])[:, 0]
        highest = torch.stack([logits.max(1).values, at_label.masked_fill(~own, -torch.inf)])
        if split:
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=mpu.get_tensor_model_parallel_group())
        correct = highest[1] >= highest[0]
    if split:
        nll = vocab_parallel_cross_entropy(logits[:, None], labels[:, None])[:, 0]
    else:
        nll = F.cross_entropy(logits, labels, reduction="none")  # without three collectives of one rank
    return torch.stack([nll, correct.float()], dim=1)


def whole_logits(logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001
    """Logits of the whole vocabulary, float32 [n, padded vocabulary]; a `Read`."""
    return gather_from_tensor_model_parallel_region(logits)


def stage_output(
    model: GPTModel, local: LocalSample, vocab_size: int, *, restricted: bool, read: Read = nll_and_correct
) -> Tensor:
    """Forward pass of one pipeline stage.

    Args:
        model: a model chunk; its rotary embedding holds the factors.
        vocab_size: real size; Megatron pads the vocabulary with rows that give logit 0.
        restricted: what `only_rows` yields, where this is called within it; otherwise False.
        read: what is made of the logits of the scored tokens, `LOGIT_ROWS` at a time.

    Returns:
        On the last stage what `read` gives, on the others hidden states for the next one. Differentiable.
    """

    def read_rows(
        *, hidden_states: Tensor, output_weight: Tensor | None, scale_logits: Any, **_: Any
    ) -> Tensor:
        """Megatron's `output_processor`: hidden_states [T / cp (/ tp), 1, hidden] to rows of `read`."""
        if model.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden_states)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden_states)
        hidden = hidden[:, 0] if restricted else hidden[local.rows, 0]
        weight = model.output_layer.weight if output_weight is None else output_weight
        # This rank's rows of the vocabulary are padding from here on.
        first = mpu.get_tensor_model_parallel_rank() * len(weight)
        padding_start = min(max(vocab_size - first, 0), len(weight))
        found = []
        for part, labels in zip(hidden.split(LOGIT_ROWS), local.labels.split(LOGIT_ROWS), strict=True):
            logits = scale_logits(F.linear(part, weight)).float()
            logits[:, padding_start:] = -torch.inf
            found.append(read(logits, labels))
        return torch.cat(found)

    return model(local.tokens, local.positions, None, output_processor=read_rows)


@contextmanager
def only_rows(model: GPTModel, rows: Tensor) -> Iterator[bool]:
    """Within, the decoder returns hidden states [rows, batch, hidden] of the positions `rows` alone.

    Nothing reads the last layer's output for the other tokens: it needs keys and values of all tokens, but
    queries, projection and MLP of the scored ones only. The result is that of the whole layer.

    Yields whether it does: only where this stage's last layer feeds the output layer and has the whole
    sequence in one piece.
    """
    config = model.config
    whole_sequence = config.context_parallel_size == 1 and not config.sequence_parallel
    feeds_output = model.post_process and len(model.decoder.layers) > 0
    if not (whole_sequence and feeds_output and 0 < len(rows) <= MAX_ROWS):
        yield False
        return
    layer = model.decoder.layers[-1]
    core = layer.self_attention.core_attention
    add = layer.self_attn_bda

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query[rows], key, value))
        # The queries that share a key's head become more rows of it: with a mask, no CUDA kernel that saves
        # memory takes grouped queries, and on a CPU this is two or three times faster.
        group = q.shape[1] // k.shape[1]
        mask = (torch.arange(key.shape[0], device=key.device) <= rows[:, None]).repeat(group, 1)
        q = q.unflatten(1, (-1, group)).flatten(2, 3)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=config.softmax_scale)
        return output.unflatten(2, (group, -1)).flatten(1, 2).permute(2, 0, 1, 3).flatten(-2)

    def add_to_rows(*arguments: Any) -> Callable[..., Tensor]:
        add_residual = add(*arguments)
        return lambda output, residual, dropout: add_residual(output, residual[rows], dropout)

    core.forward, layer.self_attn_bda = attend, add_to_rows
    try:
        yield True
    finally:
        del core.forward
        layer.self_attn_bda = add
