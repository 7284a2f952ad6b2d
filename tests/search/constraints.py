"""The constraints that every individual of a search space keeps."""

import numpy as np

from megatron_longrope2.rope import ntk_below
from megatron_longrope2.search.space import Individual, SearchSpace

ROUNDING = 1e-9


def violations(space: SearchSpace, individual: Individual) -> list[str]:
    """Which constraints an individual breaks."""
    vector = np.asarray(individual.long_factor)
    above = vector[individual.critical_dim :]
    rules = {
        f"{space.half} factors": len(vector) == space.half,
        "finite": np.isfinite(vector).all(),
        "at least 1": (vector >= 1).all(),
        "non-decreasing": (np.diff(vector) >= 0).all(),
        "critical dimension among the candidates": individual.critical_dim in space.critical_dims,
        "at least the scale above the critical dimension": (above >= space.scale * (1 - ROUNDING)).all(),
    }
    if not space.moves_attention_factor:
        rules["the space's attention factor"] = (
            individual.attention_factor == space.unscaled.attention_factor.long
        )
    if space.kind == "paper":
        rules["at most twice the scale"] = (vector <= 2 * space.scale * (1 + ROUNDING)).all()
        rules["first factor 1"] = vector[0] == 1
        if space.dims == "critical":
            dim = individual.critical_dim
            rules["NTK below"] = np.array_equal(vector[:dim], ntk_below(float(vector[dim]), dim))
    return [rule for rule, kept in rules.items() if not kept]
