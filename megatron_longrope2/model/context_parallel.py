"""Which tokens of a packed sequence a context-parallel rank holds."""

import torch


def local_token_indices(cu_seqlens: torch.Tensor, cp_size: int, cp_rank: int) -> torch.Tensor:
    """Positions in the full pack of one rank's tokens, in the order in which the rank holds them.

    Every document is cut into `2 * cp_size` equal chunks; rank r holds chunks r and `2 * cp_size - 1 - r`, so
    that causal attention costs each rank the same. It is what Transformer Engine's
    `thd_get_partitioned_indices` returns, which needs CUDA.

    Args:
        cu_seqlens: document boundaries, [documents + 1]; every length a multiple of `2 * cp_size`.
        cp_size: number of ranks that share the sequence.
        cp_rank: this rank.

    Returns:
        Long tensor of `cu_seqlens[-1] / cp_size` positions, on the device of `cu_seqlens`.
    """
    boundaries = cu_seqlens.to(torch.int64)
    chunks = boundaries.diff() // (2 * cp_size)
    # Each document gives two runs of `chunk` consecutive positions.
    starts = torch.stack([boundaries[:-1] + cp_rank * chunks, boundaries[1:] - (cp_rank + 1) * chunks], dim=1)
    lengths = chunks.repeat_interleave(2)
    first_of_run = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)[:-1]])
    within_run = torch.arange(int(lengths.sum()), device=cu_seqlens.device) - first_of_run.repeat_interleave(
        lengths
    )
    return starts.flatten().repeat_interleave(lengths) + within_run
