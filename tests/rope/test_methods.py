"""Check values of the methods (LongRoPE2, section 2), the OOD bound, and what the methods refuse."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import (
    METHODS,
    load_factors,
    make_factors,
    ntk_below,
    with_longrope_attention,
    yarn_attention_factor,
)

PHI3: dict[str, Any] = {
    "rope_base": 10000,
    "rotary_dim": 96,
    "original_length": 2048,
    "target_length": 131072,
}
LLAMA3: dict[str, Any] = {
    "rope_base": 500000,
    "rotary_dim": 128,
    "original_length": 8192,
    "target_length": 131072,
}


def test_pi_is_the_scale_everywhere() -> None:
    assert make_factors("pi", **PHI3).long_factor == (64.0,) * 48


def test_none_is_one_everywhere_and_out_of_distribution() -> None:
    factors = make_factors("none", **PHI3)
    assert factors.long_factor == (1.0,) * 48
    assert factors.ood_dims() == list(range(31, 48))


def test_ntk_of_phi3_mini() -> None:
    assert make_factors("ntk", **PHI3).long_factor[31] == pytest.approx(71.88, abs=0.005)


def test_ntk_has_one_period_at_the_target_where_the_original_had() -> None:
    """The definition behind the formula: b' puts T's critical dimension where L's was."""
    factors = make_factors("ntk", **LLAMA3)
    new_base = 500000 * factors.long_factor[32] ** 2  # factor_32 = (b'/b)^(1/2)
    before = math.log(8192 / (2 * math.pi)) / math.log(500000)
    after = math.log(131072 / (2 * math.pi)) / math.log(new_base)
    assert after == pytest.approx(before, rel=1e-12)


def test_yarn_ramp_of_llama3() -> None:
    """beta_fast 32 lies at dimension 18.1, beta_slow 1 at 34.98: rounded outwards to 18 and 35."""
    factors = np.array(make_factors("yarn", **LLAMA3).long_factor)
    assert np.all(factors[:19] == 1)
    assert 1 < factors[19] < 1.1
    assert factors[34] < 16
    assert np.all(factors[35:] == 16)
    blend = 1 / factors[18:36]
    assert np.diff(blend) == pytest.approx(np.full(17, (1 / 16 - 1) / 17), rel=1e-9)


def test_yarn_without_truncation_moves_the_ramp() -> None:
    exact = make_factors("yarn", **LLAMA3, truncate=False).long_factor
    rounded = make_factors("yarn", **LLAMA3).long_factor
    assert exact[35] == rounded[35] == 16
    assert max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) > 0.01


def test_yarn_temperature_is_an_option() -> None:
    assert make_factors("yarn", **LLAMA3).attention_factor.long == 1.0
    factors = make_factors("yarn", **LLAMA3, attention_factor=True)
    assert factors.attention_factor.long == pytest.approx(0.1 * math.log(16) + 1)
    assert factors.attention_factor.short == 1.0
    assert yarn_attention_factor(1) == 1.0


def test_longrope_attention_is_that_of_the_authors_code_in_both_windows() -> None:
    published = load_factors("llama3-8b-128k")
    factors = with_longrope_attention(published)
    assert factors.attention_factor.short == factors.attention_factor.long == pytest.approx(1.1435, abs=5e-5)
    assert factors.long_factor == published.long_factor


def test_ntk_rcd_reaches_the_scale_at_the_critical_dimension() -> None:
    factors = make_factors("ntk-rcd", **PHI3, critical_dim=25)
    assert factors.long_factor[25] == pytest.approx(64, rel=1e-15)
    assert factors.long_factor[5] == pytest.approx(64**0.2)
    assert factors.critical_dim == 25


def test_yarn_rcd_reaches_the_scale_at_the_critical_dimension() -> None:
    factors = make_factors("yarn-rcd", **PHI3, critical_dim=25).long_factor
    assert factors[24] < factors[25] == 64


def test_ntk_below_reproduces_the_published_llama3_factors() -> None:
    below = ntk_below(21.81, 33)
    assert round(below[1], 4) == 1.0979
    assert round(below[32], 3) == 19.865
    published = np.array(load_factors("llama3-8b-128k").long_factor)
    assert np.abs(below / published[:33] - 1).max() < 1e-6


def test_ntk_below_of_nothing_is_empty() -> None:
    assert ntk_below(2.0, 0).shape == (0,)


model_strategy = st.fixed_dictionaries(
    {
        "rope_base": st.floats(1000, 1e8),
        "rotary_dim": st.integers(4, 128).map(lambda half: 2 * half),
        "original_length": st.integers(64, 32768),
    }
)


@given(model=model_strategy, scale=st.floats(1.1, 256), method=st.sampled_from(["pi", "ntk", "yarn"]))
def test_methods_keep_the_ood_bound(model: dict[str, Any], scale: float, method: str) -> None:
    target = max(int(model["original_length"] * scale), model["original_length"] + 1)
    factors = make_factors(method, **model, target_length=target)
    assert factors.ood_dims() == []
    assert factors.long_factor[0] == pytest.approx(factors.scale if method == "pi" else 1.0)


@given(model=model_strategy, scale=st.floats(1.1, 256), data=st.data())
def test_rcd_methods_keep_the_ood_bound(model: dict[str, Any], scale: float, data: st.DataObject) -> None:
    target = max(int(model["original_length"] * scale), model["original_length"] + 1)
    bound = make_factors("pi", **model, target_length=target).theoretical_critical_dim
    critical_dim = data.draw(st.integers(1, max(min(bound, model["rotary_dim"] // 2 - 1), 1)))
    factors = make_factors("ntk-rcd", **model, target_length=target, critical_dim=critical_dim)
    assert factors.long_factor[critical_dim] == pytest.approx(factors.scale)
    if critical_dim <= bound:
        assert factors.ood_dims() == []


@pytest.mark.parametrize(
    ("method", "extra", "message"),
    [
        ("magic", {}, "method: unknown 'magic'; known are none, pi, ntk, yarn, ntk-rcd, yarn-rcd"),
        ("pi", {"beta_fast": 2}, "beta_fast: method pi takes no options"),
        ("yarn", {"beta_fast": 1}, "beta_fast 1 must be above beta_slow 1"),
        ("ntk-rcd", {}, "method ntk-rcd needs one; the candidates for this model are 19 to 31"),
        ("ntk-rcd", {"critical_dim": 48}, r"48 is outside \[1, 47\]"),
        ("pi", {"critical_dim": 25}, "method pi has none; leave it out"),
        ("yarn-rcd", {"critical_dim": 3}, "critical_dim: 3 is not above 12, where the ramp starts"),
        ("ntk", {"original_length": 6}, "long_factor.1: Input should be greater than or equal to 1"),
        (
            "ntk",
            {"original_length": 131072},
            "target_length: 131072 is not larger than original_length 131072",
        ),
    ],
)
def test_refusals(method: str, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_factors(method, **(PHI3 | extra))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_states_itself(method: str) -> None:
    factors = make_factors(method, **PHI3, critical_dim=25 if method.endswith("-rcd") else None)
    assert factors.method == method
    assert len(factors.long_factor) == 48
    assert factors.short_factor == (1.0,) * 48
