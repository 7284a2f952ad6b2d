"""Stand-ins for kernels that only a GPU has: with tensors of the same shapes, and nothing computed."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.optimizer import clip_grads
from torch import Tensor

from megatron_longrope2.model.attention import TorchDotProductAttention
from megatron_longrope2.model.pack import DocumentPack

_attend_documents = TorchDotProductAttention._attend_documents


def stand_ins(*, transformer_engine: bool) -> dict[str, str]:
    """What cannot be run here, and what `install` lets run for it."""
    layers = {
        "Transformer Engine's layers": "torch's",
        "their attention under context parallelism": "a ring that sends keys and values",
    }
    return {
        **(layers if transformer_engine else {}),
        "flash attention": "torch's operation for it, without its kernel",
        "the fused RMSNorm": "its inputs and outputs",
        "the compiled SwiGLU": "its inputs and outputs",
        "Apex's norm of all gradients": "torch's norms of a list",
    }


def install(*, transformer_engine: bool) -> None:
    """Let torch and Megatron call what they would call on a GPU; for good.

    Args:
        transformer_engine: the job's layers would be Transformer Engine's.
    """
    F.scaled_dot_product_attention = _flash_attention
    F.rms_norm = _fused_rms_norm  # type: ignore[assignment]
    clip_grads.l2_norm_impl = _norm_of_all
    fused_bias_swiglu.swiglu = lambda both: torch.empty_like(both.chunk(2, -1)[0])
    fused_bias_swiglu.swiglu_back = lambda _, both: torch.empty_like(both)
    if transformer_engine:
        TorchDotProductAttention._attend_documents = _attend_in_a_ring  # type: ignore[method-assign, assignment]


class _Ring(torch.autograd.Function):
    """Attention that keeps this rank's queries, keys, values and output, and passes keys and values on."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        output, sums = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.group = group
        passed = torch.stack([key, value])
        for _ in range(group.size() - 1):
            passed = _pass_on(passed, group)
        return output

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        passed = torch.stack([key, value, key, value])  # with their gradients
        for _ in range(ctx.group.size() - 1):
            passed = _pass_on(passed, ctx.group)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _pass_on(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send a tensor to the next rank while the one from the rank before arrives."""
    received = torch.empty_like(tensor)
    dist.send(tensor, group=group, group_dst=(group.rank() + 1) % group.size())
    dist.recv(received, group=group, group_src=(group.rank() - 1) % group.size())
    return received


def _attend_in_a_ring(
    core: TorchDotProductAttention, query: Tensor, key: Tensor, value: Tensor, pack: DocumentPack
) -> Tensor:
    if pack.key_indices is None:
        return _attend_documents(core, query, key, value, pack)
    return _Ring.apply(query, key, value, core.cp_group)


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """[batch, heads, queries, dim]; a mask would be the memory-efficient kernel's, with the same shapes."""
    del attn_mask, enable_gqa  # the kernel takes grouped queries
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    return attend(query, key, value, dropout_p, is_causal, scale=scale)[0]


class _FusedRMSNorm(torch.autograd.Function):
    """Keeps its input and a number a row, as torch's kernel does."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        scales = states.new_empty((*states.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(states, weight, scales)
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        _, weight, _ = ctx.saved_tensors
        return torch.empty_like(gradient), torch.empty_like(weight)


def _fused_rms_norm(states: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:  # noqa: ARG001
    return _FusedRMSNorm.apply(states, weight)


def _norm_of_all(_chunk: int, _overflow: Tensor, tensor_lists: list[list[Tensor]], _each: bool) -> Any:
    return torch.stack(torch._foreach_norm(tensor_lists[0])).norm().view(1), None
