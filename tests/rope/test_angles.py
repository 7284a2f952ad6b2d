"""Angles are what readers of an export form, and learned factors get gradients through them."""

import numpy as np
import pytest
import torch

from megatron_longrope2.rope import Window, load_factors
from megatron_longrope2.rope.angles import deployed_angles, inverse_frequencies


@pytest.mark.parametrize("window", ["short", "long"])
def test_cosine_and_sine_at_131071(window: Window) -> None:
    """LLaMA3-8B: a float32 position times a float32 frequency is up to 6.2e-3 (short), 4.9e-3 (long) off."""
    factors = load_factors("llama3-8b-128k")
    positions = torch.arange(131072 - 4096, 131072)
    exact = torch.outer(positions.double(), torch.from_numpy(factors.inv_freq(window)))
    angles = deployed_angles(positions, inverse_frequencies(factors.factor(window), factors.rope_base))
    assert angles.dtype == torch.float32
    worst = max((angles.double().cos() - exact.cos()).abs().max(), (angles.double() - exact).abs().max())
    assert 1e-3 < worst < 1.6e-2


def test_frequencies_are_rounded_once() -> None:
    factors = load_factors("llama3-8b-128k")
    found = inverse_frequencies(factors.long_factor, factors.rope_base).numpy()
    np.testing.assert_allclose(found, factors.inv_freq("long"), rtol=3e-7)


def test_one_frequency_for_all_tokens_or_one_row_each() -> None:
    positions, short, long = torch.tensor([3, 4]), torch.tensor([1.0, 0.5]), torch.tensor([0.1, 0.2])
    assert deployed_angles(positions, short).tolist() == [[3.0, 1.5], [4.0, 2.0]]
    rows = deployed_angles(positions, torch.stack([short, long]))
    assert torch.equal(rows[0], deployed_angles(positions, short)[0])
    assert torch.equal(rows[1], deployed_angles(positions, long)[1])


def test_gradients_reach_the_factors() -> None:
    factor = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    deployed_angles(torch.arange(4), inverse_frequencies(factor, 100.0)).sum().backward()
    assert factor.grad is not None
    assert factor.grad.tolist() == pytest.approx([-6.0, -6.0 * 0.1 / 4])  # -(0 + 1 + 2 + 3) angle / factor**2
