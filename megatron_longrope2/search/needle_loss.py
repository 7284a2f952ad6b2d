"""The needles' loss under learned factors on a Megatron model, and its gradient, in any layout."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_longrope2.model.learned_factors import LearnedFactors
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.scoring.forward import local_sample, only_rows, stage_output
from megatron_longrope2.scoring.samples import Sample

LARGEST_LOSS = 8.0
"""Nats: a token whose loss is above has no gradient, so that a hopeless one does not outweigh the rest."""


class NeedleLoss:
    """The `DifferentiableLoss` of a Megatron model whose weights are frozen.

    Samples are dealt to the data-parallel groups in turn; a group sends its own through its pipeline as
    micro-batches. Every rank has a share of the gradient (its layers, heads, tokens, samples): the sum over
    all ranks is the whole.

    Args:
        model: from `load_model`; with `config.recompute_granularity` it recomputes activations.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.vocab_size = int(model.args.vocab_size)

    def __call__(self, learned: LearnedFactors, samples: Sequence[Sample]) -> float:
        """Mean loss of the samples' scored tokens, each at most `LARGEST_LOSS` nats; sets `grad`.

        Raises:
            InputError: a sample's length does not suit the layout.
        """
        parameters = [value for value in learned.parameters() if value.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for rotary in self.model.rotaries:
            rotary.learn(learned)
        loss = 0.0
        if mine := samples[mpu.get_data_parallel_rank() :: mpu.get_data_parallel_world_size()]:
            losses = self._run(mine, sum(sample.scored for sample in samples))
            # One rank of each tensor-parallel group reports; all of them have a share of the gradient.
            if mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0:
                loss = float(torch.stack(losses).double().sum())
        grads = [parameter.grad.flatten() for parameter in parameters]
        shares = torch.cat([grads[0].new_tensor([loss]), *grads])
        dist.all_reduce(shares)
        total, *sums = shares.split([1, *(grad.numel() for grad in grads)])
        for parameter, grad in zip(parameters, sums, strict=True):
            parameter.grad = grad.view_as(parameter)
        return float(total)

    def _run(self, samples: Sequence[Sample], scored: int) -> list[Tensor]:
        """Forward and backward of this group's samples; on the last stage, each one's share of the mean."""
        remaining = iter(samples)
        # Megatron's schedules divide by the micro-batches and multiply by the context-parallel size.
        weight = len(samples) / mpu.get_context_parallel_world_size()

        def loss_of(scores: Tensor) -> tuple[Tensor, Tensor]:
            share = scores[:, 0].clamp(max=LARGEST_LOSS).sum() / scored
            return share * weight, share.detach()

        # On the last stage a backward pass follows its forward pass at once: the restriction of the last
        # layer stays until the next forward pass, so that recomputation finds it too.
        with ExitStack() as restriction:

            def forward_step(_: Any, chunk: GPTModel) -> tuple[Tensor, Any]:
                restriction.close()
                local = local_sample(next(remaining))
                restricted = restriction.enter_context(only_rows(chunk, local.rows))
                return stage_output(chunk, local, self.vocab_size, restricted=restricted), loss_of

            for chunk in self.model.chunks:
                chunk.train()  # upstream recomputes in training mode only; the model has no dropout
            try:
                return get_forward_backward_func()(
                    forward_step_func=forward_step,
                    data_iterator=None,
                    model=self.model.chunks,
                    num_microbatches=len(samples),
                    seq_length=len(samples[0].tokens),
                    micro_batch_size=1,
                    forward_only=False,
                )
            finally:
                for chunk in self.model.chunks:
                    chunk.eval()
