"""Tables of rotation angles: as precise as float32 can hold them, and as deployed. Needs torch."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_longrope2.rope.factors import RopeFactors, Window


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
    return reduced(torch.outer(positions, per_token))


def reduced(angles: torch.Tensor) -> torch.Tensor:
    """Angles less whole turns, within [-pi, pi): float64 to float32, radians."""
    return (torch.remainder(angles + math.pi, 2 * math.pi) - math.pi).float()


def deployed_angles(
    length: int, factors: RopeFactors, window: Window, device: torch.device | str | None = None
) -> torch.Tensor:
    """Angles of positions 0 .. length-1 bit for bit as the readers of an export form them.

    transformers (`modeling_rope_utils.py`, 5.x and 4.5x) and vLLM multiply a float32 position by a float32
    frequency. At position 131071 that is up to 6e-3 of a radian off, about what bfloat16's cosine is off
    anyway; a model trained with other angles than it is deployed with would differ by more than by rounding.

    Args:
        length: number of positions, tokens.
        factors: base, rotary dimension and the factors.
        window: whose factors.
        device: where to build the table.

    Returns:
        float32 [length, rotary_dim/2], radians.
    """
    # Frequencies on the CPU, whatever the device: powers differ in the last bit elsewhere.
    exponents = torch.arange(0, factors.rotary_dim, 2, dtype=torch.int64).float() / factors.rotary_dim
    inv_freq = 1.0 / (
        torch.tensor(factors.factor(window), dtype=torch.float32) * factors.rope_base**exponents
    )
    return torch.outer(torch.arange(length, device=device).float(), inv_freq.to(device))
