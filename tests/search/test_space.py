from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import load_factors, make_factors, ntk_below, with_longrope_attention
from megatron_longrope2.search.settings import SpaceSettings
from megatron_longrope2.search.space import RAMP_PERIODS, Below, Individual, SearchSpace
from tests.search.conftest import demo_space, space_of
from tests.search.constraints import violations

KINDS = st.sampled_from(("paper", "extended"))
DIMS = st.sampled_from(("critical", "all"))
GEOMETRIES = st.tuples(
    st.sampled_from((10000.0, 500000.0)),
    st.sampled_from((8, 32, 64, 96, 128)),
    st.integers(64, 8192),
    st.floats(1.5, 64),
)


def _space(geometry: tuple[float, int, int, float], kind: str, dims: str) -> SearchSpace:
    base, dim, original, scale = geometry
    return space_of(base, dim, original, int(original * scale) + 1, kind, dims)


@settings(max_examples=60, deadline=None)
@given(GEOMETRIES, KINDS, DIMS, st.booleans(), st.integers(0, 2**32), st.floats(0.05, 1))
def test_every_individual_keeps_the_constraints(geometry, kind, dims, fix, seed, probability) -> None:
    space = replace(_space(geometry, kind, dims), fix_attention_factor=fix)
    rng = np.random.default_rng(seed)
    population = space.initial_population(24, probability, (), rng)
    for _ in range(40):
        first = population[rng.integers(len(population))]
        mates = space.pairs_for(first, population)
        child = space.mutate(first, probability, rng)
        if mates and rng.random() < 0.5:
            child = space.crossover(first, mates[rng.integers(len(mates))], rng)
        population.append(child)
    for individual in population:
        assert violations(space, individual) == []
        space.to_factors(individual, "longrope2", {})  # the factor file's own rules
    if fix:
        assert {individual.attention_factor for individual in population} == {1.0}


def test_violations_are_found(tiny_space: SearchSpace) -> None:
    vector = (*ntk_below(8.0, 10), *[8.0] * 22)
    assert violations(tiny_space, Individual(10, vector)) == []
    low_tail = (*vector[:-1], 7.9)
    assert violations(tiny_space, Individual(10, low_tail)) == [
        "non-decreasing",
        "at least the scale above the critical dimension",
    ]
    assert violations(tiny_space, Individual(9, vector))[-1] == "NTK below"
    assert violations(tiny_space, Individual(10, (*vector[:-1], 16.1))) == ["at most twice the scale"]
    assert violations(tiny_space, Individual(14, (*ntk_below(8.0, 14), *[8.0] * 18))) == [
        "critical dimension among the candidates"
    ]


def test_critical_dims_of_published_models() -> None:
    assert space_of(500000.0, 128, 8192, 131072).critical_dims == range(24, 36)
    assert space_of(10000.0, 96, 2048, 131072).critical_dims == range(19, 32)


def test_first_generation_has_a_flat_member_for_each_critical_dim(tiny_space: SearchSpace) -> None:
    population = tiny_space.initial_population(30, 0.3, (), np.random.default_rng(0))
    flat = [one for one in population if one.origin == "flat"]
    assert sorted(one.critical_dim for one in flat) == list(range(5, 14))
    for one in flat:
        g = one.long_factor[one.critical_dim]
        assert one.long_factor == (*ntk_below(g, one.critical_dim), *[g] * (32 - one.critical_dim))
        assert 8 <= g <= 16
        assert round(g, 2) == g
    assert len({one.key for one in population}) == 30


def test_extended_population_holds_every_closed_form_vector_exactly() -> None:
    space = demo_space("extended")
    population = space.initial_population(20, 0.3, (), np.random.default_rng(0))
    keys = {one.key for one in population}
    for method in ("pi", "ntk", "yarn"):
        factors = make_factors(
            method, rope_base=10000.0, rotary_dim=64, original_length=256, target_length=2048
        )
        assert (*factors.long_factor, 1.0) in keys
    for ramp in space.closed_form("ramp"):
        assert (*ramp.long_factor, 1.0) in keys
    assert any(one.origin == "yarn+attention" and one.attention_factor > 1.2 for one in population)


def test_extended_space_recognises_the_shape_genes() -> None:
    space = demo_space("extended")
    shapes = {one.method: space.project(one).below for one in space.baselines()}
    assert shapes["ntk"] == Below("ntk", 1.0)
    assert shapes["yarn"].kind == "ramp"
    starts = [shapes[f"ramp-{periods}"].value for periods in RAMP_PERIODS]
    assert starts == sorted(starts)  # fewer periods, a later dimension
    assert shapes["pi"].kind == "free"


def test_published_llama3_vector_is_inside_the_papers_space() -> None:
    space = space_of(500000.0, 128, 8192, 131072)
    factors = load_factors("llama3-8b-128k")
    individual = space.project(factors)
    assert individual.critical_dim == 33
    assert individual.long_factor == pytest.approx(factors.long_factor, rel=1e-4)
    assert violations(space, individual) == []


def test_warm_start_outside_the_papers_space_is_moved_into_it(tiny_space: SearchSpace) -> None:
    yarn = make_factors("yarn", rope_base=10000.0, rotary_dim=64, original_length=256, target_length=2048)
    individual = tiny_space.project(yarn)
    assert individual.long_factor[:13] == tuple(ntk_below(8.0, 13))
    assert violations(tiny_space, individual) == []


def test_searching_all_dims_changes_those_below() -> None:
    space = demo_space("paper", "all")
    population = space.initial_population(40, 0.5, (), np.random.default_rng(1))
    moved = [
        one
        for one in population
        if not np.allclose(
            one.long_factor[: one.critical_dim],
            ntk_below(one.long_factor[one.critical_dim], one.critical_dim),
        )
    ]
    assert len(moved) > 20
    assert all(one.long_factor[0] == 1 for one in population)


def test_factors_of_another_extension_are_refused(tiny_space: SearchSpace) -> None:
    factors = make_factors("pi", **tiny_space.unscaled.facts | {"target_length": 4096})
    with pytest.raises(InputError, match="search: pi: target_length: the factors are for 4096"):
        tiny_space.project(factors)


def test_too_small_a_population_is_refused() -> None:
    space = demo_space("extended")
    with pytest.raises(
        InputError, match=r"population: 4 has no room for the 18 given and closed-form members"
    ):
        space.initial_population(4, 0.3, (), np.random.default_rng(0))
    with pytest.raises(InputError, match="population: 0 has no room"):
        demo_space().initial_population(0, 0.3, (), np.random.default_rng(0))


def test_individual_survives_json(tiny_space: SearchSpace) -> None:
    one = tiny_space.initial_population(1, 0.3, (), np.random.default_rng(0))[0]
    assert Individual.from_dict(one.to_dict()) == one


@pytest.mark.parametrize(("kind", "fix"), [("paper", False), ("extended", True)])
def test_the_authors_attention_factor_is_every_candidates_in_both_windows(kind: str, fix: bool) -> None:
    space = demo_space(kind)
    space = replace(space, unscaled=with_longrope_attention(space.unscaled), fix_attention_factor=fix)
    wanted = (1 + np.log(8) / np.log(256)) ** 0.5
    rng = np.random.default_rng(0)
    ntk = make_factors("ntk", **space.unscaled.facts)
    for individual in space.initial_population(20, 0.3, [ntk], rng):
        child = space.crossover(individual, space.mutate(individual, 1.0, rng), rng)
        assert violations(space, child) == []
        pair = space.to_factors(child, "longrope2", {}).attention_factor
        assert pair.short == pair.long == pytest.approx(wanted)


def test_an_attention_factor_that_is_searched_is_not_given() -> None:
    with pytest.raises(InputError, match="--longrope-attention-factor: the extended space searches"):
        SpaceSettings(search_space="extended", longrope_attention_factor=True)
