"""Rotation angles, bit for bit as the readers of an export form them. Needs torch.

transformers (`modeling_rope_utils.py`, 5.x and 4.5x) and vLLM multiply a float32 position by a float32
frequency. At position 131071 that is up to 6e-3 of a radian off, about what bfloat16's cosine is off anyway;
a model trained with other angles than it is deployed with would differ by more than by rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def inverse_frequencies(
    factor: Sequence[float] | Tensor, rope_base: float, device: torch.device | str | None = None
) -> Tensor:
    """Rescaled angle per token of each dimension: float32 [rotary_dim / 2], radians.

    Args:
        factor: what each dimension's period is multiplied by, [rotary_dim / 2]; gradients flow to a tensor.
        rope_base: base of the original angles.
        device: where the result is wanted; by default where `factor` is.
    """
    factor = torch.as_tensor(factor, device=device).float()
    # On the CPU, whatever the device: powers differ in the last bit elsewhere.
    exponents = torch.arange(0, 2 * len(factor), 2).float() / (2 * len(factor))
    return 1.0 / (factor * (rope_base**exponents).to(factor.device))


def deployed_angles(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Angles of these positions: float32 [..., tokens, rotary_dim / 2], radians.

    Args:
        positions: of tokens in their documents, int [..., tokens].
        inv_freq: what `inverse_frequencies` gives, for all tokens or one row each.
    """
    return positions[..., None].float() * inv_freq
