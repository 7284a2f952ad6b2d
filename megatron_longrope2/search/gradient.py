"""The gradient search on a model: starts advanced in turn, dropped when they fall behind, with resuming."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors, yarn_attention_factor
from megatron_longrope2.search.job import Cost, Job, Outcome
from megatron_longrope2.search.learned import as_learned
from megatron_longrope2.search.learner import Checked, Learner
from megatron_longrope2.search.objective import Sample, perplexity
from megatron_longrope2.search.race import Race
from megatron_longrope2.search.tracking import Tracker

ROUNDS = 8
"""Equal parts of the steps. Before the first and after each, the worse half is dropped."""

TRAINING_INDEX = 1_000_000
"""Number of the first training needle: validation needles are those from 0 on."""

HOPELESS = 1e6
"""Nats a token, in the place of NaN, which JSON does not have."""

SAVE_SECONDS = 2.0
"""The state is written after every check, and after a step once this much time has passed."""


def learn(job: Job) -> Outcome:
    """Learn the factors by gradient on fresh needles, from the saved state if there is one.

    The job's objective is the validation set: no step is taken on it. What does best there wins, and the
    starts themselves compete, so the result is never worse than the best of them.

    Raises:
        InputError: no start, a state of another search, or losses that stay NaN.
    """
    return _Run(job).run()


def better_half(learners: list[Learner], least: int = 1) -> list[Learner]:
    """Those that have had the best factors, at least so many, in their old order."""
    ranked = sorted(learners, key=lambda one: one.best.nll)
    kept = ranked[: max(least, (len(ranked) + 1) // 2)]
    return [learner for learner in learners if learner in kept]


def most_candidates_and_steps(job: Job) -> tuple[int, int]:
    """Factors that a search checks, and steps that it takes, to the end."""
    settings = job.settings.gradient
    left = len(set(settings.starts)) + len(job.given)
    temperatures = 2 if settings.learn_attention_factor else 1
    candidates = len(job.given)
    candidates += sum(len(job.space.closed_form(one)) for one in set(settings.starts)) * temperatures
    steps = 0
    for number in range(1, ROUNDS + 1):
        left = max((left + 1) // 2, min(left, 2) if number == 1 else 1)
        steps += left * (_goal(settings.steps, number) - _goal(settings.steps, number - 1))
        candidates += left
    return candidates, steps


def _goal(steps: int, number: int) -> int:
    """Steps that a start has done at the end of a round."""
    return math.ceil(steps * number / ROUNDS)


class _Run:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.settings = job.settings.gradient
        curriculum = self.settings.length_curriculum
        if curriculum is not None and not job.space.original_length < curriculum <= job.space.target_length:
            raise InputError(
                f"--length-curriculum: {curriculum} is not above the original length "
                f"{job.space.original_length} and at most the target length {job.space.target_length}"
            )
        self.cost = Cost()
        self.history: list[dict[str, Any]] = []
        self.round = 1
        self.saved = time.monotonic()
        state = job.load_state()
        if state is not None:
            self.cost = Cost(**state["cost"])
            self.history = state["history"]
            self.round = state["round"]
        self.earlier = self.cost.seconds
        if state is None:
            self.learners = better_half(self._starts(), least=2)
            self._save()
        else:
            self.learners = [Learner.restored(one, self.settings) for one in state["learners"]]

    def run(self) -> Outcome:
        finished = True
        with (
            tqdm(
                total=most_candidates_and_steps(self.job)[1],
                desc="learning",
                unit="step",
                disable=not self.job.is_main,
            ) as bar,
            Tracker(self.job.settings.output, self.cost.steps, self.job.is_main) as tracker,
        ):
            bar.update(self.cost.steps)
            while self.round <= ROUNDS:
                if self.job.out_of_time():
                    finished = False
                    break
                self._advance(tracker)
                bar.update(self.cost.steps - bar.n)
                best = min(self.learners, key=lambda one: one.best.nll)
                bar.set_postfix(best=best.name, best_ppl=f"{perplexity(best.best.nll):.3f}")
        self._save()
        return self._outcome(finished)

    # Starts

    def _starts(self) -> list[Learner]:
        """One learner a start, each with the better of its attention factors."""
        options = self._start_options()
        if not options:
            raise InputError("--starts: there is none; name a method or give --init-factors")
        options = {name: [self._bounded(one) for one in several] for name, several in options.items()}
        learners = []
        for name, several in options.items():
            scores = self._validate(several, keep=1)
            factors, nll = min(zip(several, scores, strict=True), key=lambda pair: pair[1])
            learners.append(Learner(name, factors, self.settings, Checked(nll, factors)))
            self.history.append({"start": name, "step": 0, "validation": nll})
        return learners

    def _bounded(self, start: RopeFactors) -> RopeFactors:
        """The start itself, or the nearest factors that keep the constraints which were asked for."""
        if self.settings.max_factor is None and not self.settings.fixed_below_critical_dim:
            return start
        return replace(self.settings.parameters(start).to_factors(), critical_dim=start.critical_dim)

    def _start_options(self) -> dict[str, list[RopeFactors]]:
        """The starts by name; those without an attention factor of their own also with YaRN's, to choose."""
        space, learning = self.job.space, self.settings.learn_attention_factor
        temperatures = [1.0, yarn_attention_factor(space.scale)] if learning else [1.0]
        options: dict[str, list[RopeFactors]] = {}
        for start in dict.fromkeys(self.settings.starts):
            options[start] = [
                as_learned(factors, factors.long_factor, attention, None)
                for factors in space.closed_form(start)
                for attention in temperatures
            ]
        for number, factors in enumerate(self.job.given):
            attention = factors.attention_factor.long if learning else 1.0
            options[f"given {number}: {factors.method}"] = [
                replace(
                    as_learned(factors, factors.long_factor, attention, None),
                    critical_dim=factors.critical_dim,
                )
            ]
        return options

    # Steps

    def _advance(self, tracker: Tracker) -> None:
        """A step of the first start that is behind the others; at the end of a round, the checks."""
        behind = [
            learner for learner in self.learners if learner.step < _goal(self.settings.steps, self.round)
        ]
        if behind:
            self._step(behind[0], tracker)
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()
            return
        current = [learner.learned.to_factors() for learner in self.learners]
        for learner, factors, nll in zip(self.learners, current, self._validate(current), strict=True):
            self.history.append({"start": learner.name, "step": learner.step, "validation": nll})
            tracker.log(learner.step, {f"validation_perplexity/{learner.name}": perplexity(nll)})
            if nll < learner.best.nll:
                learner.best = Checked(nll, factors)
        self.learners = better_half(self.learners)
        self.round += 1
        self._save()

    def _step(self, learner: Learner, tracker: Tracker) -> None:
        samples = self._needles(learner.step)
        loss = self.job.loss(learner.learned, samples)
        norm = learner.update(loss)
        self.cost.steps += 1
        self.cost.failed += math.isnan(norm)
        self.cost.training_samples += len(samples)
        entry = {"start": learner.name, "step": learner.step, "tokens": len(samples[0].tokens)}
        attention = learner.learned.attention_factor().item()
        # JSON has no NaN: a skipped step has neither loss nor norm.
        values = {} if math.isnan(norm) else {"loss": loss, "gradient_norm": norm}
        self.history.append({**entry, **values, "attention_factor": attention})
        tracker.log(learner.step, {f"{name}/{learner.name}": value for name, value in values.items()})

    def _needles(self, step: int) -> list[Sample]:
        """Fresh needles of a step, the same for every start: half of them at the start, half anywhere."""
        settings, sampler = self.settings, self.job.sampler
        multiple = 2 * self.job.settings.context_parallel_size
        length = settings.length(step, self.job.space.target_length, multiple)
        samples = []
        for number in range(step * settings.batch_size, (step + 1) * settings.batch_size):
            depth = random.Random(f"depth/{sampler.seed}/{number}").random() if number % 2 else 0.0
            samples.append(Sample.from_needle(sampler.sample(TRAINING_INDEX + number, length, depth)))
        return samples

    def _validate(self, candidates: Sequence[RopeFactors], keep: int | None = None) -> list[float]:
        """Each one's loss on the validation needles, `HOPELESS` where it is NaN or not one of the best."""
        objective, scorer = self.job.objective, self.job.scorer
        count = len(objective.samples)
        vectors = [(*one.long_factor, one.attention_factor.long) for one in candidates]
        race = Race(vectors, count, keep or len(candidates))

        def losses(pairs: list[tuple[int, int]]) -> list[float]:
            found = scorer([(candidates[who], objective.samples[which]) for who, which in pairs])
            return [objective.weights[which] * loss for (_, which), loss in zip(pairs, found, strict=True)]

        race.run(losses, scorer.workers)
        self.cost.candidates += len(candidates)
        self.cost.evaluations += race.evaluations
        self.cost.pruned += len(candidates) * count - race.evaluations
        return [score if math.isfinite(score) else HOPELESS for score in race.scores()]

    # Results

    def _save(self) -> None:
        self.saved = time.monotonic()
        self.cost.seconds = self.earlier + self.saved - self.job.started
        self.job.save_state(
            {
                "learners": [learner.state() for learner in self.learners],
                "history": self.history,
                "round": self.round,
                "cost": asdict(self.cost),
            }
        )

    def _outcome(self, finished: bool) -> Outcome:
        winner = min(self.learners, key=lambda one: one.best.nll)
        settings = self.job.settings
        provenance = {
            "seed": settings.evolution.seed,
            "objective": settings.objective,
            "start": winner.name,
            "steps": winner.step,
            "samples": len(self.job.objective.samples),
            "perplexity": perplexity(winner.best.nll),
            "model": str(settings.load),
            "finished": finished,
        }
        best = winner.best.factors
        factors = as_learned(best, best.long_factor, best.attention_factor.long, provenance)
        return Outcome(
            factors,
            perplexity(winner.best.nll),
            finished,
            self.history,
            self.cost,
            compared={f"start: {winner.name}": winner.start},
        )
