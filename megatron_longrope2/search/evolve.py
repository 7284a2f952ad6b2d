"""The evolution as a session's strategy: generations raced over all ranks."""

import math
from collections.abc import Sequence
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.search.candidate import perplexity
from megatron_longrope2.search.evolution import Evolution
from megatron_longrope2.search.race import Race
from megatron_longrope2.search.session import Outcome, Session
from megatron_longrope2.search.space import SearchSpace


class EvolutionStrategy:
    """Evolves factors on a session's model.

    Args:
        prune: False scores every candidate on every sample (for comparison).
    """

    unit = "eval"

    def __init__(
        self, session: Session, space: SearchSpace, given: Sequence[RopeFactors] = (), prune: bool = True
    ) -> None:
        self.session = session
        settings = session.settings
        self.evolution = Evolution(space, settings.evolution, settings.seed, len(session.samples), given)
        self.prune = prune
        self._race = self._new_race()

    def _new_race(self) -> Race:
        evolution = self.evolution
        return Race(evolution.candidates, evolution.settings.keep, evolution.parents, self.prune)

    @property
    def done(self) -> int:
        """Pairs that were scored or pruned."""
        return self.session.cost.evaluations + self.session.cost.pruned

    @property
    def total(self) -> int:
        """Pairs of the whole search without pruning, within the budget."""
        return self.evolution.settings.candidates * len(self.session.samples)

    @property
    def finished(self) -> bool:
        """Whether all generations are scored."""
        return not self.evolution.candidates

    def advance(self) -> bool:
        """Score as many pairs at once as there are workers; after the last, breed the next generation."""
        limit = self.evolution.settings.max_evaluations
        if self.finished or (limit is not None and self.evolution.proposed > limit):
            return False
        if pairs := self._race.pairs(self.session.scorer.workers):
            self.session.score(pairs)
            return True
        self.session.cost.close(self.evolution.candidates)
        self.evolution.next_generation()
        self._race = self._new_race()
        scores = [one.score for one in self.evolution.parents]
        cost = self.session.cost
        self.session.log(
            self.evolution.generation,
            {
                "best_perplexity": perplexity(scores[0]),
                "parents_perplexity": perplexity(math.fsum(scores) / len(scores)),
                "critical_dim": self.evolution.best.factors.critical_dim or 0,
                "evaluations": cost.evaluations,
                "evaluations_pruned": cost.pruned,
            },
        )
        return True

    def status(self) -> dict[str, Any]:
        """Generation, perplexity and critical dimension of the best."""
        if not self.evolution.parents:
            return {"generation": 0}
        best = self.evolution.best
        return {
            "generation": self.evolution.generation,
            "best_ppl": f"{perplexity(best.score):.3f}",
            "critical_dim": best.factors.critical_dim,
        }

    def outcome(self) -> Outcome:
        """The best that is known exactly, also in a generation that was cut short.

        Raises:
            InputError: none is.
        """
        known = [one for one in [*self.evolution.parents, *self.evolution.candidates] if one.score < math.inf]
        if not known:
            raise InputError(
                "--max-minutes: over before any candidate was scored whole; run again with more, "
                "and the search continues where it stopped"
            )
        best = min(known, key=lambda one: one.order)
        settings = self.session.settings
        plain = settings.space.search_dims == "all" and settings.objective.objective == "document"
        provenance = {
            "seed": settings.seed,
            "objective": settings.objective.objective,
            "space": settings.space.search_space,
            "dims": settings.space.search_dims,
            "samples": len(self.session.samples),
            "perplexity": perplexity(best.score),
            "model": str(settings.load),
            "finished": self.finished,
        }
        method = "longrope" if plain else "longrope2"
        return Outcome(
            factors=self.evolution.space.to_factors(best.origin, method, provenance),
            perplexity=perplexity(best.score),
            finished=self.finished,
            history=self.evolution.history,
            cost=self.session.cost,
        )

    def state(self) -> dict[str, Any]:
        """See `Strategy`."""
        return self.evolution.state()

    def restore(self, state: dict[str, Any]) -> None:
        """See `Strategy`."""
        self.evolution.restore(state)
        self._race = self._new_race()
