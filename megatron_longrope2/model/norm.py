"""RMSNorm of the torch layer spec."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm as Megatron builds norms, marked for sequence parallelism.

    Upstream's `WrappedTorchNorm` refuses sequence parallelism: its weight lacks the mark by which
    `finalize_model_grads` sums the gradients of the ranks that each saw a part of the sequence.

    Args:
        config: the model's; `sequence_parallel` decides the mark.
        hidden_size: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel
