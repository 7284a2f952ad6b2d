"""RoPE rescaling: periods and critical dimensions, the methods, the factor file. Needs numpy and pydantic.

Also here, imported by name: `hf` (Hugging Face configs), `tables`, `plots` (needs matplotlib), `angles`
(needs torch) and `options` (needs cyclopts).
"""

from megatron_longrope2.rope.factors import AttentionFactor, RopeFactors, Window
from megatron_longrope2.rope.frequencies import critical_dim
from megatron_longrope2.rope.load import load_factors
from megatron_longrope2.rope.methods import (
    METHODS,
    make_factors,
    ntk_below,
    with_longrope_attention,
    yarn_attention_factor,
)

__all__ = [
    "METHODS",
    "AttentionFactor",
    "RopeFactors",
    "Window",
    "critical_dim",
    "load_factors",
    "make_factors",
    "ntk_below",
    "with_longrope_attention",
    "yarn_attention_factor",
]
