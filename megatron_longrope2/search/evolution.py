"""The evolution as a session's strategy: generations, bred from the best so far and raced over all ranks.

Everything random is drawn between the end of one generation and the beginning of the next, from one
generator: the candidates depend on the seed and on the scores of the best, not on who evaluated what when. No
vector is proposed twice.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.search.candidate import Candidate, perplexity
from megatron_longrope2.search.race import Race
from megatron_longrope2.search.session import Outcome, Session
from megatron_longrope2.search.space import Individual, SearchSpace

ATTEMPTS = 50
"""Tries for one child that was not proposed before; a space without new vectors ends the search."""


class Evolution:
    """Evolves factors on a session's model (LongRoPE2, Algorithms 1 and 2).

    Args:
        session: scores the candidates; its settings say how many there are, and the seed.
        space: where candidates come from.
        given: warm starts, members of the first generation.
        prune: False scores every candidate on every sample (for comparison).

    Raises:
        InputError: the population has no room for what must be in it.
    """

    unit = "eval"

    def __init__(
        self, session: Session, space: SearchSpace, given: Sequence[RopeFactors] = (), prune: bool = True
    ) -> None:
        self.session, self.space, self.prune = session, space, prune
        self.settings = session.settings.evolution
        self.rng = np.random.default_rng(session.settings.seed)
        self.parents: list[Candidate] = []
        self.candidates: list[Candidate] = []
        """The generation that is being scored; empty when the search is over."""
        self.history: list[dict[str, Any]] = []
        self.proposed = 0
        self._seen: set[str] = set()
        settings = self.settings
        self._propose(
            space.initial_population(settings.population, settings.mutation_probability, given, self.rng)
        )

    @property
    def generation(self) -> int:
        """Number of the generation that is being scored, from 0."""
        return len(self.history)

    @property
    def done(self) -> int:
        """Pairs that were scored or pruned."""
        return self.session.cost.evaluations + self.session.cost.pruned

    @property
    def total(self) -> int:
        """Pairs of the whole search without pruning, within the budget."""
        return self.settings.candidates * len(self.session.samples)

    @property
    def finished(self) -> bool:
        """Whether all generations are scored."""
        return not self.candidates

    def advance(self) -> bool:
        """Score as many pairs at once as there are workers; after the last, breed the next generation."""
        limit = self.settings.max_evaluations
        if self.finished or (limit is not None and self.proposed > limit):
            return False
        if pairs := self._race.pairs(self.session.scorer.workers):
            self.session.score(pairs)
        else:
            self._next_generation()
        return True

    def _next_generation(self) -> None:
        """Choose the parents by the candidates' scores, and breed.

        A candidate that is above the `keep`-th best full score (parents included) need not be complete: its
        score counts as infinite, which changes nothing.

        Raises:
            InputError: no candidate so far has a finite score.
        """
        self.session.cost.close(self.candidates)
        scored = [one for one in [*self.parents, *self.candidates] if one.score < math.inf]
        self.parents = sorted(scored, key=lambda one: one.order)[: self.settings.keep]
        if not self.parents:
            raise InputError(
                "search: no candidate has a finite score: the model gives NaN or infinite loss on every one; "
                "check the checkpoint, or use float32"
            )
        best, scores = self.parents[0], [one.score for one in self.parents]
        self.history.append(
            {
                "generation": self.generation,
                "candidates": len(self.candidates),
                "best_score": best.score,
                "best_critical_dim": best.factors.critical_dim,
                "best_origin": best.origin.origin,
                "parents": [[one.factors.critical_dim, one.score] for one in self.parents],
            }
        )
        self.session.log(
            self.generation,
            {
                "best_perplexity": perplexity(best.score),
                "parents_perplexity": perplexity(math.fsum(scores) / len(scores)),
                "critical_dim": best.origin.critical_dim,
                "evaluations": self.session.cost.evaluations,
                "evaluations_pruned": self.session.cost.pruned,
            },
        )
        self._propose(self._breed() if self.generation <= self.settings.iterations else [])

    def _propose(self, individuals: list[Individual]) -> None:
        self.candidates = [self._candidate(individual) for individual in individuals]
        self.proposed += len(individuals)
        self._seen.update(map(_digest, individuals))
        self._new_race()

    def _new_race(self) -> None:
        self._race = Race(self.candidates, self.settings.keep, self.parents, self.prune)

    def _candidate(self, individual: Individual) -> Candidate:
        factors = self.space.to_factors(individual, "candidate", {})
        return Candidate.unscored(factors, len(self.session.samples), individual)

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

    def status(self) -> dict[str, Any]:
        """Generation, perplexity and critical dimension of the best."""
        if not self.parents:
            return {"generation": 0}
        best = self.parents[0]
        found = {"best_ppl": f"{perplexity(best.score):.3f}", "critical_dim": best.factors.critical_dim}
        return {"generation": self.generation, **found}

    def outcome(self) -> Outcome:
        """The best that is known exactly, also in a generation that was cut short.

        Raises:
            InputError: none is.
        """
        known = [one for one in [*self.parents, *self.candidates] if one.score < math.inf]
        if not known:
            raise InputError(
                "--max-minutes: over before any candidate was scored whole; run again with more, "
                "and the search continues where it stopped"
            )
        best = min(known, key=lambda one: one.order)
        settings = self.session.settings
        plain = settings.space.search_dims == "all" and settings.objective.objective == "document"
        about = {"space": settings.space.search_space, "dims": settings.space.search_dims}
        factors = self.space.to_factors(best.origin, "longrope" if plain else "longrope2", {})
        return self.session.outcome(self, factors, best.score, self.history, about)

    def state(self) -> dict[str, Any]:
        """See `Strategy`."""
        return {
            "rng": self.rng.bit_generator.state,
            "parents": [[one.origin.to_dict(), one.losses_as_json()] for one in self.parents],
            "candidates": [[one.origin.to_dict(), one.losses_as_json()] for one in self.candidates],
            "seen": sorted(self._seen),
            "proposed": self.proposed,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Strategy`."""
        self.rng.bit_generator.state = state["rng"]
        self.parents = [self._restored(*one) for one in state["parents"]]
        self.candidates = [self._restored(*one) for one in state["candidates"]]
        self._seen, self.proposed = set(state["seen"]), state["proposed"]
        self.history = list(state["history"])
        self._new_race()

    def _restored(self, individual: dict[str, Any], losses: list[Any]) -> Candidate:
        candidate = self._candidate(Individual.from_dict(individual))
        candidate.restore_losses(losses)
        return candidate


def _digest(individual: Individual) -> str:
    return hashlib.blake2b(np.asarray(individual.key).tobytes(), digest_size=12).hexdigest()
