"""The gradient search as a session's strategy: starts advance in turn, those that fall behind are dropped."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_longrope2.data.needles import NeedleSampler
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.learned_factors import FactorOptimizer, LearnedFactors, as_learned
from megatron_longrope2.rope import RopeFactors, yarn_attention_factor
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.search.candidate import Candidate, perplexity
from megatron_longrope2.search.session import Outcome, Session
from megatron_longrope2.search.settings import GradientSettings
from megatron_longrope2.search.space import SearchSpace

ROUNDS = 8
"""Equal parts of the steps. Before the first and after each, the worse half of the starts is dropped."""

TRAINING_INDEX = 1_000_000
"""Number of the first training needle: validation needles are those from 0 on."""

HOPELESS = 1e6
"""Nats a token, in the place of NaN, which JSON does not have."""


DifferentiableLoss = Callable[[LearnedFactors, Sequence[Sample]], float]
"""Gives the mean loss of the samples' scored tokens, nats, and leaves its gradient in the parameters' `grad`.
Every rank calls it with the same samples."""


@dataclass(eq=False)
class Start:
    """One start and how far it has come.

    Attributes:
        name: for people.
        optimizer: holds the start itself, and what has been learned from it.
        best: the best factors it has had, the start included.
        best_nll: their mean loss on the validation needles, nats a token.
    """

    name: str
    optimizer: FactorOptimizer
    best: RopeFactors
    best_nll: float

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "start": self.optimizer.start.to_dict(),
            "optimizer": self.optimizer.state(),
            "best": self.best.to_dict(),
            "best_nll": self.best_nll,
        }


def better_half(starts: list[Start], least: int = 1) -> list[Start]:
    """Those that have had the best factors, at least so many, in their old order."""
    ranked = sorted(starts, key=lambda one: one.best_nll)
    kept = ranked[: max(least, (len(ranked) + 1) // 2)]
    return [start for start in starts if start in kept]


class GradientSearch:
    """Learns factors by gradient on fresh needles, on a session's model.

    The session's samples are a validation set: no step is taken on them. What does best there wins, and the
    starts themselves compete, so the result is never worse than the best of them.

    Args:
        loss: what is minimised.
        sampler: of the needles that are learned on.
        given: warm starts.

    Raises:
        InputError: there is no start.
    """

    unit = "step"

    def __init__(
        self,
        session: Session,
        space: SearchSpace,
        loss: DifferentiableLoss,
        sampler: NeedleSampler,
        given: Sequence[RopeFactors] = (),
    ) -> None:
        self.session = session
        self.settings: GradientSettings = session.settings.gradient
        self.space, self.loss, self.sampler = space, loss, sampler
        self.options = self._start_options(given)
        if not self.options:
            raise InputError("--starts: there is none; name a method or give --init-factors")
        self.history: list[dict[str, Any]] = []
        self.starts: list[Start] = []
        self.round = 0
        """0 until the starts are validated, then the number of the round that is under way."""

    @property
    def done(self) -> int:
        """Steps that were taken."""
        return self.session.cost.steps

    @property
    def total(self) -> int:
        """Steps of all starts, to the end."""
        return self.expected_cost()[1]

    @property
    def finished(self) -> bool:
        """Whether all rounds are over."""
        return self.round > ROUNDS

    def expected_cost(self) -> tuple[int, int]:
        """Factors that the search checks, and steps that it takes, to the end."""
        candidates = sum(map(len, self.options.values()))
        left, steps = len(self.options), 0
        for number in range(1, ROUNDS + 1):
            left = max((left + 1) // 2, min(left, 2) if number == 1 else 1)
            steps += left * (self._goal(number) - self._goal(number - 1))
            candidates += left
        return candidates, steps

    def _goal(self, number: int) -> int:
        """Steps that a start has done at the end of a round."""
        return math.ceil(self.settings.steps * number / ROUNDS)

    def _start_options(self, given: Sequence[RopeFactors]) -> dict[str, list[RopeFactors]]:
        """The starts by name; those without an attention factor of their own also with YaRN's, to choose."""
        learning = self.settings.learn_attention_factor
        temperatures = [1.0, yarn_attention_factor(self.space.scale)] if learning else [1.0]
        options: dict[str, list[RopeFactors]] = {}
        for name in dict.fromkeys(self.settings.starts):
            vectors = self.space.closed_form(name)
            options[name] = [as_learned(one, one.long_factor, a) for one in vectors for a in temperatures]
        for number, factors in enumerate(given):
            attention = factors.attention_factor.long if learning else 1.0
            options[f"given {number}: {factors.method}"] = [
                as_learned(factors, factors.long_factor, attention)
            ]
        return options

    def advance(self) -> bool:
        """A step of the first start that is behind the others; between rounds, the checks."""
        if self.finished:
            return False
        behind = [one for one in self.starts if one.optimizer.step < self._goal(self.round)]
        if self.round == 0:
            self.starts = better_half([self._first(*option) for option in self.options.items()], least=2)
            self.round = 1
        elif behind:
            self._step(behind[0])
        else:
            self._check()
            self.starts = better_half(self.starts)
            self.round += 1
        return True

    def _optimizer(self, name: str, start: RopeFactors) -> FactorOptimizer:
        return FactorOptimizer(
            f"start {name}",
            start,
            steps=self.settings.steps,
            learning_rate=self.settings.learning_rate,
            learn_attention_factor=self.settings.learn_attention_factor,
        )

    def _first(self, name: str, several: list[RopeFactors]) -> Start:
        """A start from the best of its options."""
        scores = self._validate(several, keep=1)
        factors, nll = min(zip(several, scores, strict=True), key=lambda pair: pair[1])
        self.history.append({"start": name, "step": 0, "validation": nll})
        return Start(name, self._optimizer(name, factors), factors, nll)

    def _step(self, start: Start) -> None:
        optimizer, cost = start.optimizer, self.session.cost
        samples = self._needles(optimizer.step)
        loss = self.loss(optimizer.learned, samples)
        norm = optimizer.update(loss)
        cost.steps += 1
        cost.failed += math.isnan(norm)
        cost.training_samples += len(samples)
        # JSON has no NaN: a skipped step has neither loss nor norm.
        values = {} if math.isnan(norm) else {"loss": loss, "gradient_norm": norm}
        attention = optimizer.learned.attention_factor().item()
        entry = {"start": start.name, "step": optimizer.step, **values, "attention_factor": attention}
        self.history.append(entry)
        self.session.log(optimizer.step, {f"{name}/{start.name}": value for name, value in values.items()})

    def _needles(self, step: int) -> Sequence[Sample]:
        """Fresh needles of a step, the same for every start: half of them at the start, half anywhere."""
        size, length = self.settings.batch_size, self.space.unscaled.target_length
        samples = []
        for number in range(step * size, (step + 1) * size):
            depth = random.Random(f"depth/{self.sampler.seed}/{number}").random() if number % 2 else 0.0
            samples.append(Sample.from_needle(self.sampler.sample(TRAINING_INDEX + number, length, depth)))
        return samples

    def _check(self) -> None:
        """Validate what has been learned, and remember the best."""
        current = [one.optimizer.learned.to_factors() for one in self.starts]
        for start, factors, nll in zip(self.starts, current, self._validate(current), strict=True):
            step = start.optimizer.step
            self.history.append({"start": start.name, "step": step, "validation": nll})
            self.session.log(step, {f"validation_perplexity/{start.name}": perplexity(nll)})
            if nll < start.best_nll:
                start.best, start.best_nll = factors, nll

    def _validate(self, several: Sequence[RopeFactors], keep: int | None = None) -> list[float]:
        """Each one's loss on the validation needles, `HOPELESS` where it is NaN or not one of the best."""
        candidates = [Candidate.unscored(one, len(self.session.samples)) for one in several]
        self.session.race(candidates, keep or len(candidates))
        return [one.score if one.score < math.inf else HOPELESS for one in candidates]

    def status(self) -> dict[str, Any]:
        """The best start and its perplexity."""
        best = min(self.starts, key=lambda one: one.best_nll)
        return {"best": best.name, "best_ppl": f"{perplexity(best.best_nll):.3f}"}

    def outcome(self) -> Outcome:
        """The best of all checks."""
        winner = min(self.starts, key=lambda one: one.best_nll)
        best = winner.best
        return self.session.outcome(
            self,
            as_learned(best, best.long_factor, best.attention_factor.long),
            winner.best_nll,
            self.history,
            {"start": winner.name, "steps": winner.optimizer.step},
            {f"start: {winner.name}": winner.optimizer.start},
        )

    def state(self) -> dict[str, Any]:
        """See `Strategy`."""
        starts = [one.state() for one in self.starts]
        return {"round": self.round, "starts": starts, "history": self.history}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Strategy`."""
        self.round, self.history = state["round"], state["history"]
        self.starts = []
        for saved in state["starts"]:
            optimizer = self._optimizer(saved["name"], RopeFactors.from_dict(saved["start"]))
            optimizer.restore(saved["optimizer"])
            best = RopeFactors.from_dict(saved["best"])
            self.starts.append(Start(saved["name"], optimizer, best, saved["best_nll"]))
