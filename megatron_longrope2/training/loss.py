"""The loss of a micro-batch, in all and by context window."""

import torch
from megatron.core.rerun_state_machine import get_rerun_state_machine
from torch import Tensor

from megatron_longrope2.training.batch import Batch

# Keeps a window without a token in the global batch at a reported loss of 0; upstream divides 0 by 0.
NO_TOKENS = 1e-20


def window_loss(
    batch: Batch, original_length: int, check_for_nan: bool, losses: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Megatron's loss function, with the two windows reported beside the whole.

    Args:
        batch: the micro-batch.
        original_length: documents of at most this many tokens are the short window's.
        check_for_nan: stop at a NaN or infinite loss, as `--check-for-nan-in-loss-and-grad` asks.
        losses: cross entropy of every token of this rank, [1, n].

    Returns:
        Sum of the losses, number of tokens with a loss (int), and for each report [sum, tokens].
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
    lengths = batch.packed.cu_seqlens_q.diff()
    long = (lengths > original_length).repeat_interleave(lengths)
    if batch.local_indices is not None:
        long = long[batch.local_indices]
    report = {"lm loss": torch.stack([loss, tokens]).detach()}
    for name, window in (("short window loss", ~long), ("long window loss", long)):
        report[name] = torch.stack([masked[window].sum(), mask[window].sum() + NO_TOKENS]).detach()
    return loss, tokens.detach().to(torch.int), report
