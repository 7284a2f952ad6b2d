"""Rescaling factors as parameters, and the optimizer that learns them. No Megatron.

The search learns them with frozen weights, training beside the weights. They are rotary_dim / 2 numbers:
everything here is float64 and the same on every rank. It is where the model is, so that no layer waits for a
number from the other device.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_longrope2 import device
from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import AttentionFactor, RopeFactors
from megatron_longrope2.rope.frequencies import angles

LEARNED = "longrope2-learned"

# Learning rate of the attention factor's logarithm, as a share of the factors' learning rate.
ATTENTION_RATE = 0.2

# Where the cosine schedule ends, as a share of the learning rate.
LEAST_RATE = 0.05

# Gradients are clipped to this norm.
LARGEST_NORM = 1.0

# So many failed steps in a row end the run.
PATIENCE = 5


class LearnedFactors(torch.nn.Module):
    """The long window's factors as a function of free numbers `u`, and its attention factor.

    `log lambda_i = unit_i * u_i`, and `lambda_0 = 1`. The unit is 1 where a period is longer than the
    original window, else the share of the window that a period takes: a step of a given size turns the angle
    at the window's end by about as much in every dimension. `project` after each step keeps the factors
    non-decreasing and at least 1. Unlike a softplus of increments, this has gradient everywhere, on the
    plateaus of YaRN too.

    Args:
        start: where to begin; exactly, but for `lambda_0 = 1`.
        learn_attention_factor: learn the attention factor too; else it stays the start's.
    """

    def __init__(self, start: RopeFactors, *, learn_attention_factor: bool = False) -> None:
        super().__init__()
        self.start = start
        periods = 2 * math.pi / torch.from_numpy(angles(start.rope_base, start.rotary_dim))
        self.register_buffer("_unit", (periods / start.original_length).clamp(max=1)[1:])
        factor = torch.tensor(start.long_factor[1:], dtype=torch.float64)
        self.u = torch.nn.Parameter(factor.log() / self._unit)
        attention = torch.tensor(start.attention_factor.long, dtype=torch.float64)
        self.log_attention = torch.nn.Parameter(attention.log(), learn_attention_factor)
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Move `u` to the nearest non-decreasing factors of at least 1."""
        self.u.copy_(isotonic(self.u * self._unit).clamp(min=0) / self._unit)

    def factor(self) -> Tensor:
        """What each dimension's period is multiplied by: `lambda`, float64 [rotary_dim / 2]."""
        return F.pad(self._unit * self.u, (1, 0)).exp()

    def attention_factor(self) -> Tensor:
        """The long window's attention factor: 0-dim float64."""
        return self.log_attention.exp()

    @torch.no_grad()
    def to_factors(self, provenance: dict[str, Any] | None = None) -> RopeFactors:
        """What has been learned, as factors."""
        vector = self.factor().clamp(min=1).cummax(0).values
        return as_learned(self.start, tuple(vector.tolist()), float(self.attention_factor()), provenance)


def isotonic(values: Tensor) -> Tensor:
    """The nearest non-decreasing vector: at i, max over j <= i of min over k >= i of mean(j..k)."""
    count = len(values)
    sums = F.pad(values.cumsum(0), (1, 0))
    places = torch.arange(count, device=values.device)
    first, last = places[:, None], places[None]
    means = (sums[1:][None] - sums[:-1][:, None]) / (last - first + 1).clamp(min=1)
    means = means.masked_fill(last < first, math.inf)
    least = means.flip(1).cummin(1).values.flip(1)  # [j, i]: over k >= i
    return least.masked_fill(first > last, -math.inf).max(0).values


def as_learned(
    start: RopeFactors,
    long_factor: tuple[float, ...],
    attention: float,
    provenance: dict[str, Any] | None = None,
) -> RopeFactors:
    """Factors of the start's model, named "longrope2-learned".

    A learned vector has no critical dimension of its own: it is given as the first dimension whose factor
    reaches the scale.
    """
    reached = [i for i, value in enumerate(long_factor) if value >= start.scale * (1 - 1e-9)]
    return replace(
        start,
        method=LEARNED,
        critical_dim=reached[0] if reached else None,
        long_factor=long_factor,
        short_factor=(),
        attention_factor=AttentionFactor(long=attention),
        provenance=provenance or {},
    )


class FactorOptimizer:
    """Adam on learned factors: a cosine schedule, clipped gradients, failed steps skipped.

    Args:
        name: of what is learned, for messages.
        start: where to begin.
        steps: of the whole schedule.
        learning_rate: of the parameters of `LearnedFactors`, at the first step.
        learn_attention_factor: learn the long window's attention factor too.
    """

    def __init__(
        self,
        name: str,
        start: RopeFactors,
        *,
        steps: int,
        learning_rate: float,
        learn_attention_factor: bool = False,
    ) -> None:
        self.name, self.start, self.steps, self.learning_rate = name, start, steps, learning_rate
        self.learned = LearnedFactors(start, learn_attention_factor=learn_attention_factor)
        self.learned.to(device.current())
        self.step = 0
        self.slower = 1.0  # share of the learning rate that is left after failed steps
        self.failed_in_row = 0
        rates = {self.learned.u: 1.0, self.learned.log_attention: ATTENTION_RATE}
        groups = [{"params": [one], "share": share} for one, share in rates.items() if one.requires_grad]
        self._adam = torch.optim.Adam(groups, lr=learning_rate, betas=(0.9, 0.95))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is learned."""
        return [value for group in self._adam.param_groups for value in group["params"]]

    def update(self, loss: float) -> float:
        """One step with the gradient that the parameters hold; returns its norm, NaN where it was skipped.

        Raises:
            InputError: the loss or the gradient was not finite for the `PATIENCE`th time in a row.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, LARGEST_NORM))
        cosine = (1 + math.cos(math.pi * self.step / self.steps)) / 2
        rate = self.learning_rate * self.slower * (LEAST_RATE + (1 - LEAST_RATE) * cosine)
        self.step += 1
        if not math.isfinite(loss + norm):
            self._fail()
            return math.nan
        for group in self._adam.param_groups:
            group["lr"] = rate * group["share"]
        self._adam.step()
        self.learned.project()
        self.failed_in_row = 0
        return norm

    def _fail(self) -> None:
        self.failed_in_row += 1
        self.slower /= 2
        if self.failed_in_row == PATIENCE:
            raise InputError(
                f"{self.name}: step {self.step}: loss or gradient is not finite, {PATIENCE} times in a row; "
                "lower the learning rate, leave this start out, or use float32"
            )

    def state(self) -> dict[str, Any]:
        """All of it as plain JSON values; float64 numbers survive exactly."""
        moments = self._adam.state_dict()["state"]
        return {
            "step": self.step,
            "slower": self.slower,
            "failed_in_row": self.failed_in_row,
            "parameters": {name: value.tolist() for name, value in self.learned.named_parameters()},
            "moments": {
                str(index): {name: value.tolist() for name, value in entry.items()}
                for index, entry in moments.items()
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what `state` returned, in an optimizer of the same start and settings."""
        self.step, self.slower, self.failed_in_row = (
            state[name] for name in ("step", "slower", "failed_in_row")
        )
        for name, value in self.learned.named_parameters():
            value.data.copy_(torch.tensor(state["parameters"][name], dtype=torch.float64))
        saved = self._adam.state_dict()
        saved["state"] = {
            int(index): {name: torch.tensor(value, dtype=torch.float64) for name, value in entry.items()}
            for index, entry in state["moments"].items()
        }
        self._adam.load_state_dict(saved)
