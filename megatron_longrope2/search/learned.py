"""Rescaling factors as parameters: monotone by construction, with gradient everywhere (METHOD section 3)."""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.rope.factors import AttentionFactor
from megatron_longrope2.rope.frequencies import angles

FLOOR = 0.01
"""Least increment of `log lambda` at the start: softplus has no gradient worth the name far below it."""


class LearnedFactors(torch.nn.Module):
    """The long window's factors as a function of free numbers `u`, and its attention factor.

    `log lambda_i` is the sum of the increments `softplus(u_j)` up to i, from `lambda_0 = 1`. Everything is
    float64 and lives on the CPU: it is rotary_dim / 2 numbers.

    Args:
        start: where to begin. Increments below `FLOOR` begin at `FLOOR`, and `lambda_0` at 1.
        learn_attention_factor: begin at the start's attention factor and learn it; else it is 1.
        fixed_below_critical_dim: the paper's structure. From the start's critical dimension on (the
            theoretical one where it has none) factors are at least the scale; below it they are NTK's.
        max_factor: a bound that factors approach and never reach.

    Raises:
        InputError: `max_factor` is not above the scale.
    """

    def __init__(
        self,
        start: RopeFactors,
        *,
        learn_attention_factor: bool = False,
        fixed_below_critical_dim: bool = False,
        max_factor: float | None = None,
    ) -> None:
        super().__init__()
        if max_factor is not None and not max_factor > start.scale:
            raise InputError(
                f"--max-factor: {max_factor:g} is not above target length / original length, {start.scale:g}"
            )
        self.start = start
        self.first, self.base = 1, 0.0
        if fixed_below_critical_dim:
            half = len(start.long_factor)
            self.first = min(start.critical_dim or start.theoretical_critical_dim, half - 1)
            self.base = math.log(start.scale)
        self.cap = math.inf if max_factor is None else math.log(max_factor) - self.base
        self._angles = torch.from_numpy(angles(start.rope_base, start.rotary_dim))
        self.u = torch.nn.Parameter(self._from(start))
        self.log_attention = torch.nn.Parameter(torch.zeros((), dtype=torch.float64), learn_attention_factor)
        if learn_attention_factor:
            self.log_attention.data.fill_(math.log(start.attention_factor.long))

    def _from(self, start: RopeFactors) -> Tensor:
        """The numbers whose factors are nearest to the start's, from dimension `first` on."""
        above = torch.tensor(start.long_factor, dtype=torch.float64)[self.first :].log() - self.base
        if math.isfinite(self.cap):
            above = -self.cap * torch.log1p(-(above / self.cap).clamp(max=0.95))
        rises = above.diff(prepend=above.new_zeros(1)).clamp(min=FLOOR)
        return rises + torch.log(-torch.expm1(-rises))  # the inverse of softplus

    def log_factor(self) -> Tensor:
        """`log lambda`, float64 [rotary_dim / 2]."""
        above = F.softplus(self.u).cumsum(0)
        if math.isfinite(self.cap):
            above = -self.cap * torch.expm1(-above / self.cap)
        above = above + self.base
        if self.first == 1:
            return F.pad(above, (1, 0))
        ntk = torch.arange(self.first, dtype=torch.float64) / self.first
        return torch.cat([ntk * above[0], above])

    def inv_freq(self) -> Tensor:
        """Rescaled angle per token of each dimension: float64 [rotary_dim / 2], radians."""
        return self._angles * torch.exp(-self.log_factor())

    def attention_factor(self) -> Tensor:
        """The long window's: 0-dim float64."""
        return self.log_attention.exp()

    @torch.no_grad()
    def to_factors(self, provenance: dict[str, Any] | None = None) -> RopeFactors:
        """What has been learned, as factors."""
        vector = self.log_factor().exp().clamp(min=1).cummax(0).values
        return as_learned(self.start, tuple(vector.tolist()), float(self.attention_factor()), provenance)


def as_learned(
    start: RopeFactors, long_factor: tuple[float, ...], attention: float, provenance: dict[str, Any] | None
) -> RopeFactors:
    """Factors "longrope2-learned" of the start's model.

    A learned vector has no critical dimension of its own: the first whose factor reaches the scale is given.
    """
    reached = [i for i, value in enumerate(long_factor) if value >= start.scale * (1 - 1e-9)]
    return replace(
        start,
        method="longrope2-learned",
        critical_dim=reached[0] if reached else None,
        long_factor=long_factor,
        short_factor=(),
        attention_factor=AttentionFactor(long=attention),
        provenance=provenance or {},
        source="longrope2-learned",
    )
