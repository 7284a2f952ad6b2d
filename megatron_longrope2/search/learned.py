"""Rescaling factors as parameters: monotone, `lambda_0 = 1`, with gradient everywhere (METHOD section 3)."""

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


class LearnedFactors(torch.nn.Module):
    """The long window's factors as a function of free numbers `u`, and its attention factor.

    `log lambda_i = unit_i * u_i`. The unit is 1 where a period is longer than the original window, else the
    share of the window that a period is: a step of a given size turns the angle at the window's end by about
    as much in every dimension. `project` after each step keeps the constraints. Everything is float64 and on
    the CPU: it is rotary_dim / 2 numbers.

    Args:
        start: where to begin; exactly, but for `lambda_0 = 1`.
        learn_attention_factor: learn it too; else it stays the start's.
        fixed_below_critical_dim: the paper's structure. From the start's critical dimension on (the
            theoretical one where it has none) factors are at least the scale; below it they are NTK's.
        max_factor: no factor is larger.

    Raises:
        InputError: `max_factor` is below the scale.
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
        if max_factor is not None and not max_factor >= start.scale:
            raise InputError(
                f"--max-factor: {max_factor:g} is below target length / original length, {start.scale:g}"
            )
        self.start = start
        half = len(start.long_factor)
        self.first = 1
        if fixed_below_critical_dim:
            self.first = min(start.critical_dim or start.theoretical_critical_dim, half - 1)
        self.bounds = (
            math.log(start.scale) if fixed_below_critical_dim else 0.0,
            math.inf if max_factor is None else math.log(max_factor),
        )
        self._angles = torch.from_numpy(angles(start.rope_base, start.rotary_dim))
        factor = torch.tensor(start.long_factor, dtype=torch.float64)
        periods = 2 * math.pi / self._angles
        self._unit = (periods / start.original_length).clamp(max=1)[self.first :]
        above = factor[self.first :].log()
        self.u = torch.nn.Parameter(above / self._unit)
        attention = torch.tensor(start.attention_factor.long, dtype=torch.float64)
        self.log_attention = torch.nn.Parameter(attention.log(), learn_attention_factor)
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Move `u` to the nearest non-decreasing factors within the bounds."""
        above = isotonic(self.u * self._unit).clamp(*self.bounds)
        self.u.copy_(above / self._unit)

    def log_factor(self) -> Tensor:
        """`log lambda`, float64 [rotary_dim / 2]."""
        above = self._unit * self.u
        ntk = torch.arange(self.first, dtype=torch.float64) / self.first
        return torch.cat([ntk * above[0], above])  # first is 1 unless NTK is asked for: a zero in front

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


def isotonic(values: Tensor) -> Tensor:
    """The nearest non-decreasing vector: at i, max over j <= i of min over k >= i of mean(j..k)."""
    count = len(values)
    sums = F.pad(values.cumsum(0), (1, 0))
    first, last = torch.arange(count)[:, None], torch.arange(count)[None]
    means = (sums[1:][None] - sums[:-1][:, None]) / (last - first + 1).clamp(min=1)
    means = means.masked_fill(last < first, math.inf)
    least = means.flip(1).cummin(1).values.flip(1)  # [j, i]: over k >= i
    return least.masked_fill(first > last, -math.inf).max(0).values


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
