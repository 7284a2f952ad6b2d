"""Angles, periods and critical dimensions of RoPE (LongRoPE2, section 2).

Dimensions are cosine dimensions, `i = 0 .. rotary_dim/2 - 1`; the lowest index has the highest frequency.
Lengths and periods are in tokens.
"""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def angles(rope_base: float, rotary_dim: int) -> FloatArray:
    """Angle per token of each dimension, `theta_i = rope_base^(-2i/rotary_dim)`: radians, [rotary_dim/2]."""
    return np.power(float(rope_base), -np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def periods(rope_base: float, rotary_dim: int) -> FloatArray:
    """Period of each dimension, `2*pi / theta_i`: tokens, [rotary_dim/2]."""
    return 2 * math.pi / angles(rope_base, rotary_dim)


def critical_dim(rope_base: float, rotary_dim: int, length: int, periods: float = 1) -> int:
    """First dimension that completes fewer than `periods` full periods within `length` tokens.

    `ceil(rotary_dim/2 * log_rope_base(length / (2*pi*periods)))`, kept within [0, rotary_dim/2]; the upper
    end means that every dimension completes them. With `periods=1` it is the theoretical critical dimension
    (LongRoPE2, section 2), with `periods=10` the lowest candidate for the real one.
    """
    return min(max(math.ceil(turning_dim(rope_base, rotary_dim, length, periods)), 0), rotary_dim // 2)


def turning_dim(rope_base: float, rotary_dim: int, length: int, periods: float) -> float:
    """Where between dimensions `periods` full periods fit into `length` tokens; it may be negative."""
    return rotary_dim / 2 * math.log(length / (2 * math.pi * periods)) / math.log(rope_base)
