"""The evolution on a model: generations raced over all ranks, with progress, budgets and resuming."""

import math
import time
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from megatron_longrope2.errors import InputError
from megatron_longrope2.search.evolution import Evolution
from megatron_longrope2.search.individual import Individual
from megatron_longrope2.search.job import Cost, Job, Outcome
from megatron_longrope2.search.objective import perplexity
from megatron_longrope2.search.race import Race
from megatron_longrope2.search.tracking import Tracker

SAVE_SECONDS = 2.0
"""The state is written after every generation, and after a batch once this much time has passed."""


def evolve(job: Job) -> Outcome:
    """Run the evolution, from its saved state if there is one.

    Every rank runs the same evolution in step: only losses are exchanged. The result does not depend on how
    many ranks there are, nor on when the search was stopped and started again.
    """
    return _Run(job).run()


class _Run:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.evolution = Evolution(job.space, job.settings.evolution, job.given)
        self.cost = Cost()
        self.parent_losses: list[list[float]] = []
        self.saved = time.monotonic()
        state = job.load_state()
        if state is not None:
            self.evolution.restore(state["evolution"])
            self.cost = Cost(**state["cost"])
            self.parent_losses = state["parent_losses"]
        self.race = self._new_race()
        if state is not None:
            self.race.restore(state["race"])
        self.earlier = self.cost.seconds

    def run(self) -> Outcome:
        finished = True
        with (
            tqdm(total=self._most(), desc="search", unit="eval", disable=not self.job.is_main) as bar,
            Tracker(self.job.settings.output, self.evolution.generation, self.job.is_main) as tracker,
        ):
            bar.update(self.cost.evaluations + self.cost.pruned + self.race.evaluations)
            while self.evolution.ask():
                if self._over_budget() or not self._generation(bar):
                    finished = False
                    break
                tracker.log(self.evolution.generation, self._scalars())
        self._save()
        return self._outcome(finished)

    def _generation(self, bar: tqdm) -> bool:
        """Score the candidates and breed the next ones; False when the time is over."""
        job, evolution = self.job, self.evolution
        factors = [job.space.to_factors(one, "candidate", {}) for one in evolution.ask()]
        objective = job.objective
        while pairs := self.race.jobs(job.scorer.workers):
            if job.out_of_time():
                return False
            losses = job.scorer([(factors[who], objective.samples[sample]) for who, sample in pairs])
            for (who, sample), loss in zip(pairs, losses, strict=True):
                self.race.record(who, sample, objective.weights[sample] * loss)
            bar.update(len(pairs))
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()
        race, possible = self.race, len(factors) * len(objective.samples)
        self.cost.candidates += len(factors)
        self.cost.evaluations += race.evaluations
        self.cost.pruned += possible - race.evaluations
        self.cost.failed += race.failed
        bar.update(possible - race.evaluations)
        rows = self._parents_and_candidates()
        evolution.tell(race.scores())
        self.parent_losses = [rows[one.individual.key] for one in evolution.parents]
        self.race = self._new_race()
        self._save()
        best = evolution.best
        bar.set_postfix(
            generation=evolution.generation - 1,
            best_ppl=f"{perplexity(best.score):.3f}",
            critical_dim=best.individual.critical_dim,
        )
        return True

    def _new_race(self) -> Race:
        parents = [one.individual.key for one in self.evolution.parents]
        return Race(
            vectors=[one.key for one in self.evolution.ask()],
            samples=len(self.job.objective.samples),
            keep=self.evolution.settings.keep,
            known=list(zip(parents, self.parent_losses, strict=True)),
            prune=self.job.settings.prune,
        )

    def _parents_and_candidates(self) -> dict[tuple[float, ...], list[float]]:
        """The losses of each vector that may be a parent of the next generation."""
        parents = [one.individual.key for one in self.evolution.parents]
        candidates = [one.key for one in self.evolution.ask()]
        losses = [*self.parent_losses, *self.race.losses.tolist()]
        return dict(zip([*parents, *candidates], losses, strict=True))

    def _most(self) -> int:
        """Evaluations of the whole search without pruning, within the budget."""
        settings = self.job.settings
        candidates = min(
            settings.evolution.evaluations, settings.max_evaluations or settings.evolution.evaluations
        )
        return candidates * len(self.job.objective.samples)

    def _over_budget(self) -> bool:
        limit = self.job.settings.max_evaluations
        return limit is not None and self.evolution.proposed > limit

    def _scalars(self) -> dict[str, float]:
        parents = [one.score for one in self.evolution.parents]
        return {
            "best_perplexity": perplexity(self.evolution.best.score),
            "parents_perplexity": perplexity(math.fsum(parents) / len(parents)),
            "critical_dim": self.evolution.best.individual.critical_dim,
            "evaluations": self.cost.evaluations,
            "evaluations_pruned": self.cost.pruned,
        }

    def _save(self) -> None:
        self.saved = time.monotonic()
        self.cost.seconds = self.earlier + self.saved - self.job.started
        self.job.save_state(
            {
                "evolution": self.evolution.state(),
                "race": self.race.progress(),
                "parent_losses": self.parent_losses,
                "cost": asdict(self.cost),
            }
        )

    def _outcome(self, finished: bool) -> Outcome:
        score, individual = self._best()
        settings = self.job.settings
        plain = settings.dims == "all" and settings.objective == "document"
        provenance: dict[str, Any] = {
            "seed": settings.evolution.seed,
            "objective": settings.objective,
            "space": settings.space,
            "dims": settings.dims,
            "samples": len(self.job.objective.samples),
            "perplexity": perplexity(score),
            "model": str(settings.load),
            "finished": finished,
        }
        return Outcome(
            factors=self.job.space.to_factors(individual, "longrope" if plain else "longrope2", provenance),
            perplexity=perplexity(score),
            finished=finished,
            history=self.evolution.history,
            cost=replace(self.cost, evaluations=self.cost.evaluations + self.race.evaluations),
        )

    def _best(self) -> tuple[float, Individual]:
        """The best that is known exactly, in a generation cut short too.

        Raises:
            InputError: none is.
        """
        known = [(one.score, one.individual) for one in self.evolution.parents]
        known += list(zip(self.race.scores(), self.evolution.ask(), strict=True))
        best = min(known, key=lambda pair: (pair[0], pair[1].key))
        if best[0] == math.inf:
            raise InputError(
                "--max-minutes: over before any candidate was scored whole; run again with more, "
                "the search continues where it stopped"
            )
        return best
