"""What a sample's tokens add up to."""

import math

import pytest
import torch

from megatron_longrope2.scoring.scorer import TokenScores


@pytest.mark.parametrize(
    ("nll", "total"),
    [([1.0, 2.5], 3.5), ([-1e-7, 1.0], 1.0), ([1.0, math.nan], math.inf), ([math.inf, 1.0], math.inf)],
)
def test_total(nll: list[float], total: float) -> None:
    assert TokenScores(torch.tensor(nll), torch.tensor([True, False])).total == total
