"""The parameterisation of learned factors keeps its constraints, wherever a step leads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope2.model.learned_factors import LearnedFactors, isotonic
from megatron_longrope2.rope import make_factors

GEOMETRY = {"rope_base": 10000.0, "rotary_dim": 32, "original_length": 256, "target_length": 2048}
METHODS = ["none", "pi", "ntk", "yarn"]
numbers = st.lists(st.floats(-50, 50), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@given(numbers)
def test_isotonic_is_pool_adjacent_violators(values: torch.Tensor) -> None:
    blocks: list[list[float]] = []
    for value in values.tolist():
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    wanted = [value for value, count in blocks for _ in range(int(count))]
    assert isotonic(values).tolist() == pytest.approx(wanted, abs=1e-9)


@given(
    st.sampled_from(METHODS),
    st.lists(st.floats(-100, 100), min_size=16, max_size=16),
)
@settings(deadline=None)
def test_whatever_the_step_factors_stay_valid(method, moves) -> None:
    learned = LearnedFactors(make_factors(method, **GEOMETRY))
    learned.u.data += torch.tensor(moves[: len(learned.u)], dtype=torch.float64)
    learned.project()
    factors = learned.to_factors()  # RopeFactors itself refuses what decreases or is below 1
    assert factors.long_factor[0] == 1
    assert factors.attention_factor.long == 1


@pytest.mark.parametrize("method", METHODS)
def test_start_is_met_exactly_and_moves_everywhere(method: str) -> None:
    start = make_factors(method, **GEOMETRY)
    learned = LearnedFactors(start, learn_attention_factor=True)
    assert learned.to_factors().long_factor == pytest.approx((1.0, *start.long_factor[1:]))
    (learned.factor() * torch.arange(1, 17)).sum().backward()
    assert bool((learned.u.grad != 0).all())


def test_critical_dimension_is_the_first_that_reaches_the_scale() -> None:
    assert LearnedFactors(make_factors("none", **GEOMETRY)).to_factors().critical_dim is None
    learned = LearnedFactors(make_factors("yarn", **GEOMETRY)).to_factors()
    at = learned.critical_dim
    assert learned.long_factor[at - 1] < 7.9
    assert learned.long_factor[at] == pytest.approx(8)


def test_attention_factor_begins_at_the_starts() -> None:
    start = make_factors("yarn", attention_factor=True, **GEOMETRY)
    learned = LearnedFactors(start, learn_attention_factor=True)
    assert learned.to_factors().attention_factor.long == pytest.approx(start.attention_factor.long)
    assert learned.log_attention.requires_grad
    fixed = LearnedFactors(start)
    assert fixed.to_factors().attention_factor.long == pytest.approx(start.attention_factor.long)
    assert not fixed.log_attention.requires_grad
