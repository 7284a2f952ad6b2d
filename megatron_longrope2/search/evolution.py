"""The evolution: breeds candidates from the best so far. Pure: no model, no files, no clock.

Everything random is drawn here, between the end of one generation and the beginning of the next, from one
generator: the candidates depend on the seed and on the scores of the best, not on who evaluated what when. No
    vector
is proposed twice.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.search.candidate import Candidate
from megatron_longrope2.search.individual import Individual
from megatron_longrope2.search.settings import EvolutionSettings
from megatron_longrope2.search.space import SearchSpace

ATTEMPTS = 50
"""Tries for one child that was not proposed before; a space without new vectors ends the search."""


class Evolution:
    """The search as a sequence of generations.

    Args:
        space: where candidates come from.
        settings: sizes and probability.
        seed: of everything random.
        samples: that a candidate is scored on.
        given: warm starts, members of the first generation.

    Raises:
        InputError: the population has no room for what must be in it.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: EvolutionSettings,
        seed: int,
        samples: int,
        given: Sequence[RopeFactors] = (),
    ) -> None:
        self.space = space
        self.settings = settings
        self.samples = samples
        self.rng = np.random.default_rng(seed)
        self.parents: list[Candidate] = []
        self.candidates: list[Candidate] = []
        """The generation that is being scored; empty when the search is over."""
        self.history: list[dict[str, Any]] = []
        self.proposed = 0
        self._seen: set[str] = set()
        self._propose(
            space.initial_population(settings.population, settings.mutation_probability, given, self.rng)
        )

    @property
    def generation(self) -> int:
        """Number of the generation that is being scored, from 0."""
        return len(self.history)

    @property
    def best(self) -> Candidate:
        """The best so far; there is one after the first generation."""
        return self.parents[0]

    def next_generation(self) -> None:
        """Choose the parents by the scores of the candidates, and breed the next generation.

        A candidate that is above the `settings.keep`-th best full score (parents included) need not be
        complete: its score counts as infinite, which changes nothing.

        Raises:
            InputError: no candidate so far has a finite score.
        """
        finite = [one for one in self.candidates if one.complete and not one.failed]
        self.parents = sorted([*self.parents, *finite], key=lambda one: one.order)[: self.settings.keep]
        if not self.parents:
            raise InputError(
                "search: no candidate has a finite score: the model gives NaN or infinite loss on every one; "
                "check the checkpoint, or use float32"
            )
        self.history.append(
            {
                "generation": self.generation,
                "candidates": len(self.candidates),
                "best_score": self.best.score,
                "best_critical_dim": self.best.factors.critical_dim,
                "best_origin": self.best.origin.origin,
                "parents": [[one.factors.critical_dim, one.score] for one in self.parents],
            }
        )
        self._propose(self._breed() if self.generation <= self.settings.iterations else [])

    def _propose(self, individuals: list[Individual]) -> None:
        self.candidates = [self._candidate(individual) for individual in individuals]
        self.proposed += len(individuals)
        self._seen.update(map(_digest, individuals))

    def _candidate(self, individual: Individual) -> Candidate:
        factors = self.space.to_factors(individual, "candidate", {})
        return Candidate.unscored(factors, self.samples, individual)

    def _breed(self) -> list[Individual]:
        pool = [one.origin for one in self.parents]
        children: list[Individual] = []
        taken = set(self._seen)
        for number in range(self.settings.children):
            cross = number >= (self.settings.children + 1) // 2
            for attempt in range(ATTEMPTS):
                # Parents too alike to give a new crossover give a mutation.
                child = self._child(pool, cross and attempt < ATTEMPTS // 2)
                if _digest(child) not in taken:
                    taken.add(_digest(child))
                    children.append(child)
                    break
        return children

    def _child(self, pool: list[Individual], cross: bool) -> Individual:
        """A crossover where asked for and possible, else a mutation."""
        first = pool[self.rng.integers(len(pool))]
        mates = self.space.pairs_for(first, pool) if cross else []
        if mates:
            return self.space.crossover(first, mates[self.rng.integers(len(mates))], self.rng)
        return self.space.mutate(first, self.settings.mutation_probability, self.rng)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to continue as if nothing had happened, as plain JSON values."""
        return {
            "rng": self.rng.bit_generator.state,
            "parents": [[one.origin.to_dict(), one.losses_as_json()] for one in self.parents],
            "candidates": [[one.origin.to_dict(), one.losses_as_json()] for one in self.candidates],
            "seen": sorted(self._seen),
            "proposed": self.proposed,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what `state` returned, in an evolution of the same space and settings."""
        self.rng.bit_generator.state = state["rng"]
        self.parents = [self._restored(*one) for one in state["parents"]]
        self.candidates = [self._restored(*one) for one in state["candidates"]]
        self._seen = set(state["seen"])
        self.proposed = state["proposed"]
        self.history = list(state["history"])

    def _restored(self, individual: dict[str, Any], losses: list[Any]) -> Candidate:
        candidate = self._candidate(Individual.from_dict(individual))
        candidate.restore_losses(losses)
        return candidate


def _digest(individual: Individual) -> str:
    return hashlib.blake2b(np.asarray(individual.key).tobytes(), digest_size=12).hexdigest()
