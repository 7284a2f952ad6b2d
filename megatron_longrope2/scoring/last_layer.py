"""The last layer computes what the scored tokens need, and no more.

Nothing reads its output for the other tokens: it needs keys and values of all tokens, but queries, projection
and MLP of the scored ones only. The result is that of the whole layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

MAX_ROWS = 512
"""Above this the causal mask, rows x tokens, would cost more than it saves."""


@contextmanager
def only_rows(model: GPTModel, rows: Tensor) -> Iterator[bool]:
    """Within, the decoder returns hidden states [rows, batch, hidden] of the positions `rows` alone.

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
        mask = torch.arange(key.shape[0], device=key.device) <= rows[:, None]
        output = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            scale=config.softmax_scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return output.permute(2, 0, 1, 3).flatten(-2)

    def add_to_rows(*arguments: Any) -> Callable[..., Tensor]:
        add_residual = add(*arguments)
        return lambda output, residual, dropout: add_residual(output, residual[rows], dropout)

    core.forward, layer.self_attn_bda = attend, add_to_rows
    try:
        yield True
    finally:
        del core.forward
        layer.self_attn_bda = add
