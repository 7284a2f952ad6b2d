"""The evolution: ask for candidates, tell their scores. Pure: no model, no files, no clock.

Everything random is drawn here, between a `tell` and the next `ask`, from one generator: the candidates
depend on the seed and on the scores of the best, not on who evaluated what when. No vector is proposed twice.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.search.individual import Individual
from megatron_longrope2.search.space import SearchSpace

ATTEMPTS = 50
"""Tries for one child that was not proposed before; a space without new vectors ends the search."""


@dataclass(frozen=True)
class EvolutionSettings:
    """Settings of the evolution; the defaults are the paper's, but for the parents.

    Attributes:
        population: members of the first generation, N.
        iterations: generations after the first; each proposes N/2 children.
        parents: the best k that are kept; None: N/8, but 4 or more. The authors' code keeps N/2. Few parents
            prune more (docs/search.md).
        mutation_probability: p, per gene.
        seed: of everything random.

    Raises:
        InputError: a setting out of its range.
    """

    population: int = 64
    iterations: int = 40
    parents: int | None = None
    mutation_probability: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.population < 1:
            raise InputError(f"search: population: {self.population} is empty; use at least 1")
        if self.iterations < 0:
            raise InputError(f"search: iterations: {self.iterations} is negative; use 0 or more")
        if not 1 <= self.keep <= self.population:
            raise InputError(f"search: parents: {self.keep} is not in 1..{self.population}, the population")
        if not 0 < self.mutation_probability <= 1:
            raise InputError(
                f"search: mutation_probability: {self.mutation_probability} is not above 0 and at most 1"
            )
        if self.seed < 0:
            raise InputError(f"search: seed: {self.seed} is negative; use 0 or more")

    @property
    def keep(self) -> int:
        """k, the number of parents."""
        if self.parents is not None:
            return self.parents
        return min(max(self.population // 8, 4), self.population)

    @property
    def children(self) -> int:
        """Candidates of every generation after the first, half mutations and half crossovers."""
        return max(self.population // 2, 1)

    @property
    def evaluations(self) -> int:
        """Candidates of the whole search."""
        return self.population + self.iterations * self.children


@dataclass(frozen=True)
class Scored:
    """An individual and its full score (lower is better). Ordered by score, then by `Individual.key`."""

    score: float
    individual: Individual

    @property
    def order(self) -> tuple[float, tuple[float, ...]]:
        """Total order of full scores: two different vectors never compare equal."""
        return self.score, self.individual.key


class Evolution:
    """The search as a sequence of generations.

    Args:
        space: where candidates come from.
        settings: sizes, probability, seed.
        given: warm starts, members of the first generation.

    Raises:
        InputError: the population has no room for what must be in it.
    """

    def __init__(
        self, space: SearchSpace, settings: EvolutionSettings, given: Sequence[RopeFactors] = ()
    ) -> None:
        self.space = space
        self.settings = settings
        self.rng = np.random.default_rng(settings.seed)
        self.parents: list[Scored] = []
        self.history: list[dict[str, Any]] = []
        self.proposed = 0
        self._seen: set[str] = set()
        self._pending: list[Individual] = []
        self._propose(
            space.initial_population(settings.population, settings.mutation_probability, given, self.rng)
        )

    @property
    def generation(self) -> int:
        """Number of the generation that `ask` returns, from 0."""
        return len(self.history)

    @property
    def best(self) -> Scored:
        """The best so far; there is one after the first `tell`."""
        return self.parents[0]

    def ask(self) -> list[Individual]:
        """The candidates to score next; the same until `tell`; empty when the search is over."""
        return list(self._pending)

    def tell(self, scores: Sequence[float]) -> None:
        """Take in the full scores of the candidates, in the order of `ask`, and breed the next generation.

        A score above the `settings.keep`-th best full score (parents included) may be given as infinite: it
        changes nothing. NaN counts as infinite.

        Raises:
            InputError: no candidate so far has a finite score.
        """
        scored = [Scored(score, who) for score, who in zip(scores, self._pending, strict=True)]
        finite = [one for one in scored if math.isfinite(one.score)]
        self.parents = sorted([*self.parents, *finite], key=lambda one: one.order)[: self.settings.keep]
        if not self.parents:
            raise InputError(
                "search: no candidate has a finite score: the model gives NaN or infinite loss on every one; "
                "check the checkpoint, or use float32"
            )
        self.history.append(
            {
                "generation": self.generation,
                "candidates": len(scored),
                "best_score": self.best.score,
                "best_critical_dim": self.best.individual.critical_dim,
                "best_origin": self.best.individual.origin,
                "parents": [[one.individual.critical_dim, one.score] for one in self.parents],
            }
        )
        self._propose(self._breed() if self.generation <= self.settings.iterations else [])

    def _propose(self, individuals: list[Individual]) -> None:
        self._pending = individuals
        self.proposed += len(individuals)
        self._seen.update(map(_digest, individuals))

    def _breed(self) -> list[Individual]:
        pool = [one.individual for one in self.parents]
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

    # Resuming

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on as if nothing had happened; plain JSON values."""
        return {
            "rng": self.rng.bit_generator.state,
            "parents": [[one.score, one.individual.to_dict()] for one in self.parents],
            "pending": [individual.to_dict() for individual in self._pending],
            "seen": sorted(self._seen),
            "proposed": self.proposed,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what `state` returned, in an evolution of the same space and settings."""
        self.rng.bit_generator.state = state["rng"]
        self.parents = [Scored(score, Individual.from_dict(who)) for score, who in state["parents"]]
        self._pending = [Individual.from_dict(who) for who in state["pending"]]
        self._seen = set(state["seen"])
        self.proposed = state["proposed"]
        self.history = list(state["history"])

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a state to be resumed: space and settings, as plain JSON values."""
        return {"space": asdict(self.space), "settings": asdict(self.settings)}


def _digest(individual: Individual) -> str:
    return hashlib.blake2b(np.asarray(individual.key).tobytes(), digest_size=12).hexdigest()
