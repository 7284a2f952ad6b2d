"""The table of rotation angles, as precise as float32 can hold it. Needs torch."""

import math

import numpy as np
import torch
from numpy.typing import NDArray


def angle_table(
    length: int, inv_freq: NDArray[np.float64] | torch.Tensor, device: torch.device | str | None = None
) -> torch.Tensor:
    """Angles of positions 0 .. length-1, for cosine and sine only: float32 [length, rotary_dim/2], radians.

    The product position * inv_freq is taken in float64, reduced by whole turns to [-pi, pi) and rounded once,
    at the end. A float32 angle near 1e5 is known to 4e-3 only; reduced it is known to 1.2e-7, and its cosine
    and sine are the same. Gradients flow to `inv_freq`.

    Args:
        length: number of positions, tokens.
        inv_freq: angle per token of each dimension, float64 [rotary_dim/2] (`RopeFactors.inv_freq(window)`).
        device: where to build the table; by default where `inv_freq` is.
    """
    per_token = torch.as_tensor(inv_freq, device=device).double()
    positions = torch.arange(length, dtype=torch.float64, device=per_token.device)
    exact = torch.outer(positions, per_token)
    return (torch.remainder(exact + math.pi, 2 * math.pi) - math.pi).float()
