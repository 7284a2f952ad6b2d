"""The long window's factors learned during mid-training, beside the weights: `--train-rope-factors`.

They are rotary_dim / 2 numbers, the same on every rank, and take no part in Megatron's gradient buffers and
optimizer: their gradient is a sum over all ranks, and `model.learned_factors` has their Adam. They travel in
the checkpoint's arguments, where the exporter and later runs find them.
"""

from argparse import Namespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.distributed import finalize_model_grads
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.training.checkpointing import checkpoint_exists, get_load_checkpoint_path_by_args
from torch import Tensor

from megatron_longrope2.model.arguments import factors_of
from megatron_longrope2.model.builder import LongRoPE2ModelConfig
from megatron_longrope2.model.learned_factors import FactorOptimizer
from megatron_longrope2.rope import RopeFactors


class FactorTraining:
    """Learns the factors of a training run.

    Args:
        args: of the run; `longrope2_factors` is kept up to date, and `longrope2_learned` holds the state, so
            that each checkpoint has both.
        config: of the model; gets the factors, and the hook that is called when a step's gradients are
            complete.
    """

    def __init__(self, args: Namespace, config: LongRoPE2ModelConfig) -> None:
        self.args = args
        steps = args.train_iters or args.train_samples // args.global_batch_size
        state = _saved_state(args)
        start = factors_of(args) if state is None else RopeFactors.from_dict(state["start"])
        self.optimizer = FactorOptimizer(
            "--train-rope-factors", start, steps=steps, learning_rate=args.rope_factors_lr
        )
        if state is not None:
            self.optimizer.restore(state)
        self._publish()
        config.learned_factors = self.optimizer.learned
        config.transformer.finalize_model_grads_func = self.finalize

    def finalize(self, model: list[GPTModel], num_tokens: Tensor | None = None, **options: Any) -> None:
        """Upstream's `finalize_model_grads`, then a step of the factors."""
        finalize_model_grads(model, num_tokens, **options)
        assert num_tokens is not None, "the loss is per token"  # summed over all ranks by upstream
        parameters = self.optimizer.parameters
        grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        shares = torch.cat([grad.flatten() for grad in grads])
        # Every rank has a share: its layers, heads, tokens, samples.
        dist.all_reduce(shares)
        sums = (shares / num_tokens.clamp(min=1)).split([grad.numel() for grad in grads])
        for parameter, grad in zip(parameters, sums, strict=True):
            parameter.grad = grad.view_as(parameter)
        self.optimizer.update(0.0)
        self.optimizer.learned.zero_grad()
        self._publish()

    def _publish(self) -> None:
        start = self.optimizer.start
        provenance = {**start.provenance, "start": start.method, "trained_steps": self.optimizer.step}
        self.args.longrope2_factors = self.optimizer.learned.to_factors(provenance).to_dict()
        self.args.longrope2_learned = {"start": start.to_dict(), **self.optimizer.state()}


def _saved_state(args: Namespace) -> dict[str, Any] | None:
    """The state in the checkpoint from which the run is resumed; None if it begins anew."""
    if args.finetune or not checkpoint_exists(args.load):
        return None
    saved = dist_checkpointing.load_common_state_dict(get_load_checkpoint_path_by_args(args))["args"]
    return getattr(saved, "longrope2_learned", None)
