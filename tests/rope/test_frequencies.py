"""Periods and critical dimensions of Phi3-mini and LLaMA3-8B (LongRoPE2, section 2)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longrope2.rope.frequencies import angles, critical_dim, periods


@pytest.mark.parametrize(
    ("rope_base", "rotary_dim", "length", "turns", "expected"),
    [
        (10000, 96, 2048, 1, 31),
        (10000, 96, 2048, 10, 19),
        (500000, 128, 8192, 1, 35),
        (500000, 128, 8192, 10, 24),
    ],
)
def test_critical_dim_check_values(
    rope_base: float, rotary_dim: int, length: int, turns: int, expected: int
) -> None:
    assert critical_dim(rope_base, rotary_dim, length, turns) == expected


def test_periods_of_phi3_mini() -> None:
    # Whole tokens, cut off.
    assert int(periods(10000, 96)[47]) == 51861
    assert int(periods(10000, 96)[7]) == 24


def test_angles_start_at_one_radian_per_token() -> None:
    theta = angles(500000, 128)
    assert theta.shape == (64,)
    assert theta[0] == 1.0
    assert theta[32] == pytest.approx(1 / math.sqrt(500000), rel=1e-15)


@given(
    rope_base=st.floats(100, 1e8),
    rotary_dim=st.integers(1, 128).map(lambda half: 2 * half),
    length=st.integers(1, 2**20),
    turns=st.integers(1, 40),
)
def test_critical_dim_splits_the_dimensions(
    rope_base: float, rotary_dim: int, length: int, turns: int
) -> None:
    """Below it every dimension completes the periods, from it on none does."""
    first = critical_dim(rope_base, rotary_dim, length, turns)
    completed = length / periods(rope_base, rotary_dim)
    assert np.all(completed[:first] >= turns * (1 - 1e-9))
    assert np.all(completed[first:] < turns * (1 + 1e-9))
