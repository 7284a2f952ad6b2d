import json
import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import make_factors
from megatron_longrope2.search.evolution import Evolution
from megatron_longrope2.search.session import Cost
from megatron_longrope2.search.settings import EvolutionSettings
from megatron_longrope2.search.space import SearchSpace
from tests.search.conftest import demo_space

SAMPLES = 6


def _space(kind: str = "paper", dims: str = "critical") -> SearchSpace:
    return demo_space(kind, dims)


class _Session:
    """Scores the individuals themselves, in the place of a model, in a shuffled order."""

    def __init__(
        self, settings: EvolutionSettings, seed: int, loss, workers: int, shuffle: int | None
    ) -> None:
        self.settings = SimpleNamespace(evolution=settings, seed=seed)
        self.samples = range(SAMPLES)
        self.scorer = SimpleNamespace(workers=workers)
        self.cost = Cost()
        self.loss, self.order = loss, random.Random(shuffle)

    def score(self, pairs) -> None:
        self.order.shuffle(pairs)
        for candidate, sample in pairs:
            candidate.losses[sample] = self.loss(candidate.origin, sample)
        self.cost.evaluations += len(pairs)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        pass


def _evolution(
    population: int,
    iterations: int,
    loss=None,
    *,
    space=None,
    seed: int = 0,
    given=(),
    workers: int = 1,
    shuffle: int | None = None,
    prune: bool = True,
    **options,
) -> Evolution:
    settings = EvolutionSettings(population=population, iterations=iterations, **options)
    session = _Session(settings, seed, loss, workers, shuffle)
    return Evolution(session, space or _space(), given, prune)


def _run(evolution: Evolution) -> Evolution:
    while evolution.advance():
        pass
    return evolution


def _tell(evolution: Evolution, scores: list[float]) -> None:
    """Score the whole generation at once."""
    numbers = {id(one): number for number, one in enumerate(evolution.candidates)}
    for candidate in evolution.candidates:
        for sample in range(SAMPLES):
            candidate.losses[sample] = scores[numbers[id(candidate)]] / SAMPLES
    evolution.advance()


@pytest.mark.parametrize("kind", ["paper", "extended"])
@pytest.mark.parametrize("dims", ["critical", "all"])
def test_result_is_the_same_for_any_workers_and_without_pruning(kind, dims, toy_loss) -> None:
    def run(**options) -> Evolution:
        return _run(_evolution(24, 6, toy_loss, space=_space(kind, dims), seed=3, **options))

    reference = run(prune=False)
    for workers in (1, 2, 7):
        other = run(workers=workers, shuffle=workers)
        assert other.history == reference.history
        assert [one.order for one in other.parents] == [one.order for one in reference.parents]
        assert other.state() == reference.state()


def test_pruning_saves_sample_evaluations(toy_loss) -> None:
    cost = _run(_evolution(24, 6, toy_loss, parents=4)).session.cost
    possible = (24 + 6 * 12) * SAMPLES
    assert cost.evaluations + cost.pruned == possible
    assert cost.evaluations < 0.9 * possible


def test_search_improves_and_the_best_never_gets_worse(toy_loss) -> None:
    history = _run(_evolution(32, 15, toy_loss)).history
    best = [entry["best_score"] for entry in history]
    assert best == sorted(best, reverse=True)
    assert best[-1] < 0.6 * best[0]
    assert len(history) == 16


def test_extended_winner_is_no_worse_than_any_closed_form_method(toy_loss) -> None:
    evolution = _run(_evolution(20, 3, toy_loss, space=_space("extended")))
    for factors in _space("extended").baselines():
        individual = _space("extended").project(factors)
        assert evolution.parents[0].score <= math.fsum(toy_loss(individual, s) for s in range(SAMPLES))


def test_no_vector_is_proposed_twice(toy_loss) -> None:
    evolution = _evolution(30, 10, toy_loss)
    generations = {}
    while evolution.advance():
        generations[evolution.generation] = [one.vector for one in evolution.candidates]
    proposed = [vector for vectors in generations.values() for vector in vectors]
    assert len(set(proposed)) == len(proposed) == evolution.proposed == 30 + 10 * 15


def test_seed_decides() -> None:
    def first(seed: int):
        return [one.vector for one in _evolution(16, 1, seed=seed).candidates]

    assert first(1) == first(1) != first(2)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 400), st.integers(0, 1000))
def test_restored_evolution_continues_as_if_nothing_had_happened(stop: int, seed: int) -> None:
    def loss(individual, sample: int) -> float:
        return abs(math.sin(sample + sum(individual.long_factor)))

    def new() -> Evolution:
        return _evolution(18, 4, loss, space=_space("extended"), seed=seed)

    whole = _run(new())
    part = new()
    for _ in range(stop):
        part.advance()
    resumed = new()
    resumed.restore(json.loads(json.dumps(part.state())))
    assert _run(resumed).state() == whole.state()


def test_failed_candidates_are_no_parents() -> None:
    evolution = _evolution(8, 2)
    vectors = [one.vector for one in evolution.candidates]
    _tell(evolution, [math.inf, 2.0, math.inf, 1.0, *[math.inf] * 4])
    assert [one.vector for one in evolution.parents] == [vectors[3], vectors[1]]
    assert evolution.candidates


def test_ties_are_broken_by_the_vector() -> None:
    evolution = _evolution(8, 0, parents=3)
    vectors = sorted(one.vector for one in evolution.candidates)
    _tell(evolution, [1.0] * 8)
    assert [one.vector for one in evolution.parents] == vectors[:3]


def test_warm_start_is_a_member_of_the_first_generation() -> None:
    yarn = make_factors("yarn", rope_base=10000.0, rotary_dim=64, original_length=256, target_length=2048)
    first = _evolution(8, 0, space=_space("paper", "all"), given=[yarn]).candidates[0]
    assert (first.origin.origin, first.factors.long_factor) == ("yarn", yarn.long_factor)


def test_no_finite_score_is_refused() -> None:
    with pytest.raises(InputError, match="no candidate has a finite score"):
        _tell(_evolution(4, 2), [math.inf] * 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 4, "parents": 5}, r"--parents: 5 is not in 1\.\.4"),
        ({"max_evaluations": 3}, "--max-evaluations: 3 does not cover the first generation of 64"),
    ],
)
def test_settings_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        EvolutionSettings(**options)
