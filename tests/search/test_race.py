import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope2.rope import AttentionFactor, RopeFactors
from megatron_longrope2.search.candidate import Candidate
from megatron_longrope2.search.race import Race

LOSSES = st.integers(1, 12).flatmap(
    lambda samples: st.lists(
        st.lists(
            st.one_of(st.floats(0, 1e6), st.sampled_from((0.0, 0.1, 0.2, 0.3, math.inf))),
            min_size=samples,
            max_size=samples,
        ),
        min_size=1,
        max_size=12,
    )
)


def _candidate(value: float, samples: int, losses: list[float] | None = None) -> Candidate:
    """One on a line: its vector is (1, value)."""
    factors = RopeFactors(
        "test", 10000.0, 2, 8, 64, None, (1.0,), attention_factor=AttentionFactor(long=value)
    )
    candidate = Candidate.unscored(factors, samples)
    candidate.losses[: len(losses or [])] = losses or []
    return candidate


def _line(candidates: int, samples: int) -> list[Candidate]:
    """Candidates one after the other on a line."""
    return [_candidate(1.0 + c, samples) for c in range(candidates)]


def _run(
    losses: list[list[float]], keep: int, workers: int, places=None, known=(), **options
) -> list[Candidate]:
    samples = len(losses[0])
    candidates = [_candidate(value, samples) for value in places or [1.0 + c for c in range(len(losses))]]
    numbers = {id(one): number for number, one in enumerate(candidates)}
    race = Race(candidates, keep, known, **options)
    while pairs := race.pairs(workers):
        assert len({(id(one), sample) for one, sample in pairs}) == len(pairs) <= workers
        for candidate, sample in pairs:
            assert math.isnan(candidate.losses[sample])
            candidate.losses[sample] = losses[numbers[id(candidate)]][sample]
    return candidates


def _scores(candidates: list[Candidate]) -> list[float]:
    return [one.score for one in candidates]


def _evaluations(candidates: list[Candidate]) -> int:
    return sum(one.scored for one in candidates)


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
    places = [1 + rnd.random() for _ in losses]
    # Parents with the losses of candidates, so that scores are equal.
    finite = [row for row in losses[:parents] if all(map(math.isfinite, row))]
    known = [_candidate(1 + rnd.random(), len(row), row) for row in finite]
    incumbents = [math.fsum(row) for row in finite]
    full = _scores(_run(losses, keep, 1, places, known, prune=False))
    pruned = _scores(_run(losses, keep, workers, places, known))
    assert _best(pruned, keep, incumbents) == _best(full, keep, incumbents)
    exact = [math.fsum(row) if all(map(math.isfinite, row)) else math.inf for row in losses]
    assert full == exact


def test_sums_do_not_depend_on_the_order() -> None:
    values = [0.1, 1e16, 0.2, 3.0, 1e-9]
    totals = set()
    for order in itertools.permutations(range(5)):
        candidate = _candidate(1.0, 5)
        for sample in order:
            candidate.losses[sample] = values[sample]
        totals.add(candidate.score)
    assert len(totals) == 1


def test_hard_samples_first_saves_work() -> None:
    rnd = random.Random(0)
    hardness = [0.01] * 8 + [1.0, 2.0]
    losses = [[h * (0.5 + rnd.random()) * (1 + 0.2 * c) for h in hardness] for c in range(32)]
    blind = _evaluations(_run(losses, 8, 1))
    informed = _evaluations(_run(losses, 8, 1, known=[_candidate(0.5, 10, hardness)]))
    assert informed < 150 < 320
    assert informed <= blind < 320


def test_each_candidate_meets_first_what_its_neighbours_failed() -> None:
    near, far = math.exp(1.0), math.exp(5.0)
    known = [_candidate(near, 3, [0.1, 4.0, 0.2]), _candidate(far, 3, [3.0, 0.1, 0.2])]
    first, second = _candidate(near * math.exp(-0.1), 3), _candidate(far * math.exp(0.2), 3)
    race = Race([first, second], 1, known)
    assert race.pairs(2) == [(first, 1), (second, 0)]
    first.losses[1] = 1.0  # what a candidate has shown counts for the others
    weights = [4.2**-2, 0.2**-2, 4.3**-2]
    mean = np.average([4.0, 0.1, 1.0], weights=weights)
    assert race.expected(1)[1] == pytest.approx(mean, rel=1e-9)


def test_a_loss_that_is_not_finite_tells_nothing_of_the_others() -> None:
    candidates = [_candidate(1.0, 2), _candidate(1.0, 2), _candidate(2.0, 2)]
    race = Race(candidates, 1)
    candidates[0].losses[1] = math.inf
    candidates[2].losses[1] = 5.0
    assert race.expected(1).tolist() == [0.0, 5.0]


def test_no_candidate_advances_past_the_final_threshold() -> None:
    losses = [[1.0] * 10 for _ in range(4)] + [[5.0] * 10 for _ in range(4)]
    candidates = _run(losses, 4, 1)
    assert [one.scored for one in candidates[4:]] == [3, 3, 3, 3]  # 5 and 10 are not above 10, 15 is


def test_equal_scores_are_never_dropped() -> None:
    """Nor a candidate that reaches the k-th best score before its last sample, which may add nothing."""
    known = [_candidate(9.0, 2, [1.5, 1.5])]
    assert _scores(_run([[1.0, 2.0], [2.0, 1.0], [3.0, 0.0]], 1, 1, known=known)) == [3.0, 3.0, 3.0]


def test_failed_candidates_are_infinitely_bad() -> None:
    candidates = _run([[math.inf, 1.0], [2.0, math.inf], [1.0, 1.0]], 3, 1)
    assert [one.failed for one in candidates] == [True, True, False]
    assert _scores(candidates) == [math.inf, math.inf, 2.0]


def test_every_worker_gets_work_while_there_is_some() -> None:
    race = Race(_line(2, 5), 1)
    assert len(race.pairs(8)) == 8
    assert len(race.pairs(16)) == 10


def test_losses_survive_json() -> None:
    candidate, again = _candidate(1.0, 4, [0.1, math.inf, 3.0]), _candidate(1.0, 4)
    again.restore_losses(json.loads(json.dumps(candidate.losses_as_json())))
    assert np.array_equal(again.losses, candidate.losses, equal_nan=True)
    assert (again.scored, again.failed, again.complete) == (3, True, False)
