"""RoPE rescaling: periods and critical dimensions, the methods, the factor file. Needs only numpy.

Also here, imported by name: `hf` (Hugging Face configs), `angles` (the angle table, needs torch), `report`
(tables) and `plots` (pictures, needs matplotlib).
"""

from megatron_longrope2.rope.factors import FORMAT, AttentionFactor, RopeFactors, Window
from megatron_longrope2.rope.frequencies import critical_dim, periods
from megatron_longrope2.rope.load import load_factors, published_names
from megatron_longrope2.rope.methods import METHODS, make_factors, ntk_below, yarn_attention_factor

__all__ = [
    "FORMAT",
    "METHODS",
    "AttentionFactor",
    "RopeFactors",
    "Window",
    "critical_dim",
    "load_factors",
    "make_factors",
    "ntk_below",
    "periods",
    "published_names",
    "yarn_attention_factor",
]
