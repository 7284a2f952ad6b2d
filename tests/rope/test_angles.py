"""Precision of the angle table, and that the search's learner can take gradients through it."""

import math
from typing import Literal

import numpy as np
import pytest
import torch

from megatron_longrope2.rope import load_factors
from megatron_longrope2.rope.angles import angle_table


def _worst(angle: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference of cosine and sine, of float32 angles against float64 ones."""
    assert angle.dtype == torch.float32
    cosine, sine = angle.cos().double() - exact.cos(), angle.sin().double() - exact.sin()
    return max(cosine.abs().max().item(), sine.abs().max().item())


@pytest.mark.parametrize("window", ["short", "long"])
def test_cosine_and_sine_at_131071(window: Literal["short", "long"]) -> None:
    """LLaMA3-8B over 131072 positions. Measured: 1.4e-7 for the table (the rounding of float32 near pi),

    6.2e-3 (short) and 4.9e-3 (long) for a float32 position times a float32 frequency, which is what upstream
    and transformers compute.
    """
    factors = load_factors("llama3-8b-128k")
    inv_freq = factors.inv_freq(window)
    positions = torch.arange(131072 - 4096, 131072)
    exact = torch.outer(positions.double(), torch.from_numpy(inv_freq))
    table = angle_table(131072, inv_freq)
    assert table.shape == (131072, 64)
    assert _worst(table[-4096:], exact) < 2e-7
    upstream = torch.outer(positions.float(), torch.from_numpy(factors.inv_freq(window, np.float32)))
    assert 1e-3 < _worst(upstream, exact) < 1.6e-2


def test_float64_itself_is_precise_enough() -> None:
    """The exact angle against 64-bit mantissas (x87): its own error stays far below float32's."""
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("no extended precision on this machine")
    base, dims = np.longdouble(500000), np.arange(0, 128, 2, dtype=np.longdouble)
    extended = np.longdouble(131071) * base ** (-dims / 128)
    table = angle_table(131072, load_factors("llama3-8b-128k").inv_freq("short"))[-1].double().numpy()
    assert np.abs(np.cos(extended) - np.cos(table)).max() < 2e-7


def test_angles_are_reduced_and_equal_up_to_whole_turns() -> None:
    inv_freq = np.array([1.0, 0.1])
    table = angle_table(1000, inv_freq).double().numpy()
    assert np.all(np.abs(table) <= np.float32(math.pi))
    turns = (np.arange(1000)[:, None] * inv_freq - table) / (2 * math.pi)
    assert np.abs(turns - turns.round()).max() < 1e-7
    assert table[:4, 0] == pytest.approx([0, 1, 2, 3], rel=1e-7)


def test_gradients_reach_the_frequencies() -> None:
    inv_freq = torch.tensor([1.0, 0.01], dtype=torch.float64, requires_grad=True)
    angle_table(4, inv_freq).sum().backward()
    assert inv_freq.grad is not None
    assert inv_freq.grad.tolist() == [6.0, 6.0]  # 0 + 1 + 2 + 3
