"""The loss of a micro-batch."""

from collections.abc import Callable

import torch
from megatron.core.rerun_state_machine import get_rerun_state_machine
from torch import Tensor

from megatron_longrope2.training.batch import Batch

Report = Callable[[Batch, Tensor], dict[str, Tensor]]
"""From a micro-batch and its masked losses, float32 [n], to [sum, count] for each name that is logged."""


def batch_loss(
    batch: Batch, report: Report, check_for_nan: bool, losses: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Megatron's loss function.

    Args:
        batch: the micro-batch.
        report: what is logged beside the whole loss.
        check_for_nan: stop at a NaN or infinite loss, as `--check-for-nan-in-loss-and-grad` asks.
        losses: cross entropy of every token of this rank, [1, n].

    Returns:
        Sum of the losses, number of tokens with a loss (int), and for each report [sum, count].
    """
    assert batch.loss_mask is not None
    mask = batch.loss_mask.view(-1).float()
    masked = losses.view(-1).float() * mask
    loss, tokens = masked.sum(), mask.sum()
    if check_for_nan:
        for reject, what in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            get_rerun_state_machine().validate_result(
                result=loss,
                rejection_func=reject,
                message=f"found {what} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
    reports = {"lm loss": torch.stack([loss, tokens]).detach(), **report(batch, masked.detach())}
    return loss, tokens.detach().to(torch.int), reports
