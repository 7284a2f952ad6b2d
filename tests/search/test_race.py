import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope2.search.race import Race

LOSSES = st.integers(1, 12).flatmap(
    lambda samples: st.lists(
        st.lists(
            st.one_of(st.floats(0, 1e6), st.sampled_from((0.0, 0.1, 0.2, 0.3, math.nan))),
            min_size=samples,
            max_size=samples,
        ),
        min_size=1,
        max_size=12,
    )
)


def _line(candidates: int) -> list[list[float]]:
    """Candidates one after the other on a line."""
    return [[1.0 + c] for c in range(candidates)]


def _run(losses: list[list[float]], keep: int, workers: int, vectors=None, **options) -> Race:
    race = Race(vectors or _line(len(losses)), len(losses[0]), keep, **options)
    while jobs := race.jobs(workers):
        assert len(set(jobs)) == len(jobs) <= workers
        for candidate, sample in jobs:
            assert math.isnan(race.losses[candidate, sample])
            race.record(candidate, sample, losses[candidate][sample])
    return race


def _best(scores: list[float], keep: int, incumbents: list[float]) -> list[tuple[float, int]]:
    numbered = [(score, -1 - i) for i, score in enumerate(incumbents)]
    numbered += [(score, c) for c, score in enumerate(scores)]
    return sorted(pair for pair in numbered if math.isfinite(pair[0]))[:keep]


@settings(max_examples=300, deadline=None)
@given(
    LOSSES,
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 6),
    st.randoms(use_true_random=False),
)
def test_pruning_changes_nothing_among_the_best(losses, keep, workers, parents, rnd) -> None:
    """Survivors, scores to the last bit and ties: as in a full evaluation, for any worker count and order."""
    vectors = [[1 + rnd.random(), 1 + rnd.random()] for _ in losses]
    # Parents with the losses of candidates, so that scores are equal.
    finite = [row for row in losses[:parents] if all(map(math.isfinite, row))]
    known = [([1 + rnd.random(), 1 + rnd.random()], row) for row in finite]
    incumbents = [math.fsum(row) for _, row in known]
    full = _run(losses, keep, 1, vectors, known=known, prune=False).scores()
    pruned = _run(losses, keep, workers, vectors, known=known)
    assert _best(pruned.scores(), keep, incumbents) == _best(full, keep, incumbents)
    exact = [math.fsum(row) if all(map(math.isfinite, row)) else math.inf for row in losses]
    assert full == exact


def test_sums_do_not_depend_on_the_order() -> None:
    values = [0.1, 1e16, 0.2, 3.0, 1e-9]
    totals = set()
    for order in itertools.permutations(range(5)):
        race = Race([[1.0]], 5, 1)
        for sample in order:
            race.record(0, sample, values[sample])
        totals.add(race.scores()[0])
    assert len(totals) == 1


def test_hard_samples_first_saves_work() -> None:
    rnd = random.Random(0)
    hardness = [0.01] * 8 + [1.0, 2.0]
    losses = [[h * (0.5 + rnd.random()) * (1 + 0.2 * c) for h in hardness] for c in range(32)]
    parents = [([0.5], hardness)]
    blind = _run(losses, 8, 1).evaluations
    informed = _run(losses, 8, 1, known=parents).evaluations
    assert informed < 150 < 320
    assert informed <= blind < 320


def test_each_candidate_meets_first_what_its_neighbours_failed() -> None:
    near, far = math.exp(1.0), math.exp(5.0)
    known = [([near], [0.1, 4.0, 0.2]), ([far], [3.0, 0.1, 0.2])]
    race = Race([[near * math.exp(-0.1)], [far * math.exp(0.2)]], 3, 1, known)
    assert race.jobs(2) == [(0, 1), (1, 0)]
    race.record(0, 1, 1.0)  # what a candidate has shown counts for the others
    weights = [4.2**-2, 0.2**-2, 4.3**-2]
    mean = np.average([4.0, 0.1, 1.0], weights=weights)
    assert race.expected(1)[1] == pytest.approx(mean, rel=1e-9)


def test_a_loss_that_is_not_finite_tells_nothing_of_the_others() -> None:
    race = Race([[1.0], [1.0], [2.0]], 2, 1)
    race.record(0, 1, math.inf)
    race.record(2, 1, 5.0)
    assert race.expected(1).tolist() == [0.0, 5.0]


def test_no_candidate_advances_past_the_final_threshold() -> None:
    losses = [[1.0] * 10 for _ in range(4)] + [[5.0] * 10 for _ in range(4)]
    race = _run(losses, 4, 1)
    assert (~np.isnan(race.losses[4:])).sum(axis=1).tolist() == [
        3,
        3,
        3,
        3,
    ]  # 5 and 10 are not above 10, 15 is


def test_equal_scores_are_never_dropped() -> None:
    """Nor a candidate that reaches the k-th best score before its last sample, which may add nothing."""
    race = _run([[1.0, 2.0], [2.0, 1.0], [3.0, 0.0]], 1, 1, known=[([9.0], [1.5, 1.5])])
    assert race.scores() == [3.0, 3.0, 3.0]


def test_failed_candidates_are_counted_and_infinitely_bad() -> None:
    race = _run([[math.nan, 1.0], [math.inf, 1.0], [1.0, 1.0]], 3, 1)
    assert race.failed == 2
    assert race.scores() == [math.inf, math.inf, 2.0]


def test_every_worker_gets_work_while_there_is_some() -> None:
    race = Race(_line(2), 5, 1)
    assert len(race.jobs(8)) == 8
    assert len(race.jobs(16)) == 10


@pytest.mark.parametrize("done", [0, 1, 7])
def test_progress_restores(done: int) -> None:
    losses = [[math.nan, 2.0, 1.0], [1.0, 2.0, 3.0], [0.5, 0.5, 0.5]]
    race = Race(_line(3), 3, 1)
    for _ in range(done):
        for candidate, sample in race.jobs(1):
            race.record(candidate, sample, losses[candidate][sample])
    again = Race(_line(3), 3, 1)
    again.restore(race.progress())
    assert again.progress() == race.progress()
    assert again.jobs(3) == race.jobs(3)
