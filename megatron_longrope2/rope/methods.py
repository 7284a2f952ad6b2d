"""The closed-form rescaling methods: each gives one vector of factors, [rotary_dim/2] (LongRoPE2, section 2).

`scale` is `s = target_length / original_length`; dimensions are cosine dimensions; lengths are in tokens.
"""

import math
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import frequencies
from megatron_longrope2.rope.factors import AttentionFactor, RopeFactors
from megatron_longrope2.rope.frequencies import FloatArray

Method = Literal["none", "pi", "ntk", "yarn", "ntk-rcd", "yarn-rcd"]
METHODS: tuple[str, ...] = get_args(Method)


def pi_factors(rotary_dim: int, scale: float) -> FloatArray:
    """Position interpolation: `scale` everywhere (Chen et al. 2023)."""
    return np.full(rotary_dim // 2, float(scale))


def ntk_factors(rope_base: float, rotary_dim: int, original_length: int, target_length: int) -> FloatArray:
    """NTK: the base whose critical dimension at the target is the original one (Liu et al. 2023).

    `b' = b^(log(T/2pi) / log(L/2pi))`, `factor_i = (b'/b)^(2i/rotary_dim)`.
    """
    exponent = math.log(target_length / (2 * math.pi)) / math.log(original_length / (2 * math.pi)) - 1
    return frequencies.angles(rope_base, rotary_dim) ** -exponent


def yarn_factors(
    rope_base: float,
    rotary_dim: int,
    original_length: int,
    scale: float,
    *,
    beta_fast: float = 32,
    beta_slow: float = 1,
    truncate: bool = True,
    critical_dim: int | None = None,
) -> FloatArray:
    """YaRN: factor 1 below the ramp, `scale` above, frequencies blended linearly between (Peng et al. 2023).

    The ramp runs over dimensions, from where `beta_fast` full periods fit into the original window to where
    `beta_slow` do. As in transformers and Megatron-Core, its ends are rounded outwards (`truncate=True`; with
    False they are kept exact) and bounded by 0 and `rotary_dim - 1`.

    Args:
        critical_dim: where the ramp ends, in place of `beta_slow` (YaRN-rcd).

    Raises:
        InputError: not `beta_fast > beta_slow > 0`, or `critical_dim` lies at or below the ramp's start.
    """
    if not beta_fast > beta_slow > 0:
        raise InputError(
            f"yarn: beta_fast {beta_fast:g} must be above beta_slow {beta_slow:g}, and both positive"
        )
    low, high = (
        frequencies.turning_dim(rope_base, rotary_dim, original_length, turns)
        for turns in (beta_fast, beta_slow)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if critical_dim is not None:
        if critical_dim <= low:
            raise InputError(
                f"yarn-rcd: critical_dim: {critical_dim} is not above {low:g}, where the ramp starts "
                f"(beta_fast {beta_fast:g}); give a larger one or raise beta_fast"
            )
        high = critical_dim
    elif high == low:
        high += 0.001  # a step, as upstream
    ramp = np.clip((np.arange(rotary_dim // 2) - low) / (high - low), 0, 1)
    # 1 / (ramp/scale + 1 - ramp), written so that both ends are exact: 1 and scale.
    return np.clip(scale / (ramp + (1 - ramp) * scale), 1, scale)


def llama3_factors(
    rope_base: float,
    rotary_dim: int,
    original_length: int,
    scale: float,
    *,
    low_freq_factor: float,
    high_freq_factor: float,
) -> FloatArray:
    """LLaMA 3.1's rescaling, which goes by the number of periods in the window (rope type `llama3`).

    Factor 1 where there are more than `high_freq_factor`, `scale` where fewer than `low_freq_factor`;
    between, frequencies are blended linearly in that number.

    Raises:
        InputError: not `high_freq_factor > low_freq_factor > 0`.
    """
    if not high_freq_factor > low_freq_factor > 0:
        raise InputError(
            f"llama3: high_freq_factor {high_freq_factor:g} must be above low_freq_factor "
            f"{low_freq_factor:g}, and both positive"
        )
    turns = original_length / frequencies.periods(rope_base, rotary_dim)
    keep = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return np.clip(scale / (1 - keep + keep * scale), 1, scale)


def yarn_attention_factor(scale: float) -> float:
    """YaRN's temperature as a multiplier of cosine and sine: `0.1 * ln(scale) + 1`."""
    return 0.1 * math.log(scale) + 1


def longrope_attention_factor(scale: float, original_length: int) -> float:
    """What transformers' `longrope` and the code of LongRoPE2's authors multiply cosine and sine by, in both
    windows: `sqrt(1 + ln(scale) / ln(original_length))`. The paper has no such factor.
    """
    return math.sqrt(1 + math.log(scale) / math.log(original_length))


def with_longrope_attention(factors: RopeFactors) -> RopeFactors:
    """The same vectors with `longrope_attention_factor` in both windows."""
    value = longrope_attention_factor(factors.scale, factors.original_length)
    return replace(factors, attention_factor=AttentionFactor(short=value, long=value))


def ntk_below(g: float, critical_dim: int) -> FloatArray:
    """The factors below a critical dimension whose own factor is `g`: `g^(i/critical_dim)`, [critical_dim].

    This is what LongRoPE2's search puts below the searched dimensions (Algorithm 2).
    """
    return np.power(float(g), np.arange(critical_dim) / max(critical_dim, 1))


def make_factors(
    method: str,
    *,
    rope_base: float,
    rotary_dim: int,
    original_length: int,
    target_length: int,
    critical_dim: int | None = None,
    attention_factor: bool = False,
    **ramp: Any,
) -> RopeFactors:
    """The factors of a closed-form method for one model.

    Args:
        method: one of `METHODS`. "none" is all ones, the baseline that no window extension is.
        rope_base, rotary_dim: the model's RoPE base and rotated dimensions of a head.
        original_length, target_length: pre-trained and extended window, tokens.
        critical_dim: the real critical dimension, for the -rcd methods and only for them.
        attention_factor: make YaRN's temperature the long window's attention factor, in place of 1.
        ramp: `beta_fast`, `beta_slow` and `truncate` of `yarn_factors`, for YaRN and YaRN-rcd.

    Raises:
        InputError: an unknown method, a missing or superfluous critical dimension, or numbers that no factors
            can have.
    """
    if method not in METHODS:
        raise InputError(f"method: unknown {method!r}; known are {', '.join(METHODS)}")
    # Validated with factors of 1 first, so that no formula meets numbers that it cannot take.
    plain = RopeFactors(
        method=method,
        rope_base=rope_base,
        rotary_dim=rotary_dim,
        original_length=original_length,
        target_length=target_length,
        critical_dim=None,
        long_factor=(1.0,) * (rotary_dim // 2),
    )
    _check_critical_dim(plain, critical_dim)
    if ramp and not method.startswith("yarn"):
        raise InputError(f"{next(iter(ramp))}: method {method} takes no options")
    if method == "none":
        vector = np.ones(rotary_dim // 2)
    elif method == "pi":
        vector = pi_factors(rotary_dim, plain.scale)
    elif method == "ntk":
        vector = ntk_factors(rope_base, rotary_dim, original_length, target_length)
    elif method == "ntk-rcd" and critical_dim is not None:
        vector = np.power(plain.scale, np.arange(rotary_dim // 2) / critical_dim)
    else:
        vector = yarn_factors(
            rope_base, rotary_dim, original_length, plain.scale, critical_dim=critical_dim, **ramp
        )
    temperature = yarn_attention_factor(plain.scale) if attention_factor else 1.0
    return replace(
        plain,
        critical_dim=critical_dim,
        long_factor=tuple(vector.tolist()),
        attention_factor=AttentionFactor(long=temperature),
    )


def _check_critical_dim(plain: RopeFactors, critical_dim: int | None) -> None:
    """Refuse a critical dimension that the method needs and lacks, or does not take."""
    what = f"critical_dim: method {plain.method}"
    if not plain.method.endswith("-rcd"):
        if critical_dim is not None:
            raise InputError(f"{what} has none; leave it out")
        return
    half, high = plain.rotary_dim // 2, plain.theoretical_critical_dim
    if critical_dim is None:
        low = frequencies.critical_dim(plain.rope_base, plain.rotary_dim, plain.original_length, 10)
        raise InputError(f"{what} needs one; the candidates for this model are {low} to {high}")
    if not 1 <= critical_dim < half:
        raise InputError(f"{what}: {critical_dim} is outside [1, {half - 1}]")
