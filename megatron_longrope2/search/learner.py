"""Learning from one start: settings, schedule, and steps of Adam. No model, no files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import METHODS, RopeFactors
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.search.learned import LearnedFactors

ATTENTION_RATE = 0.2
"""Learning rate of the attention factor's logarithm, as a share of the factors'."""

LEAST_RATE = 0.05
"""Where the cosine ends, as a share of the learning rate."""

LARGEST_NORM = 1.0
"""Gradients are clipped to it."""

PATIENCE = 5
"""Failed steps in a row that end the search."""


class DifferentiableLoss(Protocol):
    """What the gradient search minimises; called with the same samples on every rank."""

    def __call__(self, learned: LearnedFactors, samples: Sequence[Sample]) -> float:
        """Mean loss of the scored tokens, nats, and its gradient in the parameters' `grad`."""


@dataclass(frozen=True)
class GradientSettings:
    """What the gradient search is told.

    Attributes:
        starts: closed-form methods to begin from, and "ramp": YaRN whose ramp begins at the best of several
            dimensions. `--init-factors` join them.
        steps: of the start that stays to the end. batch_size: needle documents a step.
        learning_rate: of the parameters of `LearnedFactors`, Adam.
        length_curriculum: length of the first needles, tokens; it grows to the target in half of the steps.
    """

    starts: tuple[str, ...] = ("ntk", "yarn", "ramp", "pi")
    steps: int = 48
    batch_size: int = 4
    learning_rate: float = 0.05
    learn_attention_factor: bool = False
    fixed_below_critical_dim: bool = False
    max_factor: float | None = None
    length_curriculum: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise InputError(f"--{option}: {getattr(self, name)} is not a number above 0; use 1 or more")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"--learning-rate: {self.learning_rate:g} is not a positive number")
        known = [method for method in METHODS if not method.endswith("-rcd")] + ["ramp"]
        for method in self.starts:
            if method not in known:
                raise InputError(f"--starts: {method!r} is unknown; known are {', '.join(known)}")

    def parameters(self, start: RopeFactors) -> LearnedFactors:
        """The parameters to begin with."""
        return LearnedFactors(
            start,
            learn_attention_factor=self.learn_attention_factor,
            fixed_below_critical_dim=self.fixed_below_critical_dim,
            max_factor=self.max_factor,
        )

    def length(self, step: int, target_length: int, multiple: int) -> int:
        """Tokens of the needles of a step: the target, or less while the curriculum lasts.

        Args:
            multiple: what a length must be divisible by, unless it is the target.
        """
        share = min(1.0, 2 * step / self.steps)
        if self.length_curriculum is None or share == 1:
            return target_length
        tokens = self.length_curriculum * (target_length / self.length_curriculum) ** share
        return min(target_length, math.ceil(tokens / multiple) * multiple)

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step: a cosine from 1 to `LEAST_RATE`."""
        return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass
class Checked:
    """Factors and their mean loss on the validation needles, nats a token."""

    nll: float
    factors: RopeFactors


@dataclass(eq=False)
class Learner:
    """One start and how far it has come.

    Attributes:
        name: for people. start: where it began, exactly.
        best: the best factors it has had, the start included.
        step: steps done. slower: share of the learning rate left after failed steps.
        failed: those steps. failed_in_row: the last ones.
    """

    name: str
    start: RopeFactors
    settings: GradientSettings
    best: Checked
    step: int = 0
    slower: float = 1.0
    failed: int = 0
    failed_in_row: int = 0
    learned: LearnedFactors = field(init=False)
    optimizer: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.learned = settings.parameters(self.start)
        rates = {self.learned.u: 1.0, self.learned.log_attention: ATTENTION_RATE}
        groups = [
            {"params": [value], "share": share} for value, share in rates.items() if value.requires_grad
        ]
        self.optimizer = torch.optim.Adam(groups, lr=settings.learning_rate, betas=(0.9, 0.95))

    def update(self, loss: float) -> float:
        """One step with the gradient that the parameters hold; returns its norm, NaN where it was skipped.

        Raises:
            InputError: the loss or the gradient was not finite for the `PATIENCE`th time in a row.
        """
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, LARGEST_NORM))
        rate = self.settings.learning_rate * self.slower * self.settings.rate(self.step)
        self.step += 1
        if not math.isfinite(loss + norm):
            self._fail()
            return math.nan
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.learned.project()
        self.failed_in_row = 0
        return norm

    def _fail(self) -> None:
        self.failed += 1
        self.failed_in_row += 1
        self.slower /= 2
        if self.failed_in_row == PATIENCE:
            raise InputError(
                f"start {self.name}: step {self.step}: loss or gradient is not finite, {PATIENCE} times in "
                "a row; lower --learning-rate, leave this start out, or use float32"
            )

    def state(self) -> dict[str, Any]:
        """All of it, JSON-ready; float64 numbers survive exactly."""
        moments = self.optimizer.state_dict()["state"]
        return {
            "name": self.name,
            "start": self.start.to_dict(),
            "best": {"nll": self.best.nll, "factors": self.best.factors.to_dict()},
            "step": self.step,
            "slower": self.slower,
            "failed": self.failed,
            "failed_in_row": self.failed_in_row,
            "parameters": {name: value.tolist() for name, value in self.learned.named_parameters()},
            "moments": {
                str(index): {name: value.tolist() for name, value in entry.items()}
                for index, entry in moments.items()
            },
        }

    @classmethod
    def restored(cls, state: dict[str, Any], settings: GradientSettings) -> "Learner":
        """The learner that `state` was taken from."""
        best = Checked(state["best"]["nll"], RopeFactors.from_dict(state["best"]["factors"]))
        self = cls(state["name"], RopeFactors.from_dict(state["start"]), settings, best)
        for name in ("step", "slower", "failed", "failed_in_row"):
            setattr(self, name, state[name])
        for name, value in self.learned.named_parameters():
            value.data = torch.tensor(state["parameters"][name], dtype=torch.float64)
        saved = self.optimizer.state_dict()
        saved["state"] = {
            int(index): {name: torch.tensor(value, dtype=torch.float64) for name, value in entry.items()}
            for index, entry in state["moments"].items()
        }
        self.optimizer.load_state_dict(saved)
        return self
