"""The gradient search without a model: starts, NaN, stopping and resuming, on a toy loss."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.learned_factors import PATIENCE, LearnedFactors
from megatron_longrope2.rope import AttentionFactor, RopeFactors, make_factors
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import TokenScores
from megatron_longrope2.search import session as session_module
from megatron_longrope2.search.gradient import ROUNDS, GradientSearch
from megatron_longrope2.search.session import Outcome, Session, read_state
from megatron_longrope2.search.settings import GradientSettings, ObjectiveSettings, SearchSettings
from megatron_longrope2.search.space import RAMP_PERIODS
from tests.search.conftest import demo_space

GEOMETRY = {"rope_base": 10000.0, "rotary_dim": 64, "original_length": 256, "target_length": 2048}
WANTED = torch.tensor([1.0] * 8 + [1.5 * 1.15**i for i in range(24)], dtype=torch.float64).log()
WANTED_ATTENTION = 1.3


def _distance(log_factor: torch.Tensor, log_attention: torch.Tensor) -> torch.Tensor:
    return (log_factor - WANTED).square().mean() + (log_attention - math.log(WANTED_ATTENTION)).square()


class _Scorer:
    """Distance to the wanted factors, in the place of a model's loss."""

    workers = 2

    def __call__(self, samples, factors) -> list[TokenScores]:  # noqa: ARG002
        return [TokenScores(self.loss(one)[None], torch.tensor([False])) for one in factors]

    def loss(self, factors: RopeFactors) -> torch.Tensor:
        vector = torch.tensor(factors.long_factor, dtype=torch.float64)
        attention = torch.tensor(factors.attention_factor.long, dtype=torch.float64)
        return _distance(vector.log(), attention.log())


class _Loss:
    """The same with gradient, and noise by needle; can be NaN, or die, at given calls."""

    def __init__(self, nan: tuple[int, ...] = (), die_at: int | None = None, sign: float = 1) -> None:
        self.nan, self.die_at, self.sign = nan, die_at, sign
        self.calls = 0
        self.seen: list[list[int]] = []

    def __call__(self, learned: LearnedFactors, samples) -> float:
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        learned.zero_grad()
        noise = math.fsum(math.sin(int(sample.tokens[0])) for sample in samples)
        loss = (
            self.sign * _distance(learned.factor().log(), learned.log_attention)
            + 0.001 * noise * learned.u.sum()
        )
        loss.backward()
        self.seen.append([int(sample.tokens[0]) for sample in samples])
        return math.nan if self.calls in self.nan else loss.item()


class _Sampler:
    seed = 3

    def sample(self, index: int, length: int, depth: float) -> SimpleNamespace:
        tokens = torch.zeros(length, dtype=torch.int64)
        tokens[0], tokens[1] = index, round(1000 * depth)
        return SimpleNamespace(tokens=tokens, answer_mask=torch.ones(length, dtype=torch.bool))


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(get_rank=lambda: 0, broadcast_object_list=lambda box, src: None)  # noqa: ARG005
    monkeypatch.setattr(session_module, "dist", alone)


def _strategy(
    output: Path,
    loss: _Loss,
    given: tuple[RopeFactors, ...] = (),
    samples: int = 3,
    max_minutes: float | None = None,
    **options,
) -> GradientSearch:
    settings = SearchSettings(
        load=Path("model"),
        books=Path("books"),
        output=output,
        target_length=2048,
        algorithm="gradient",
        gradient=GradientSettings(**{"steps": 24, "batch_size": 2, **options}),
        max_minutes=max_minutes,
    )
    scored = [Sample(torch.tensor([i, 0]), torch.tensor([False, True])) for i in range(samples)]
    session = Session(settings, _Scorer(), scored, {"gradient": {"steps": settings.gradient.steps}})
    return GradientSearch(session, demo_space(), loss, _Sampler(), given)


def _learn(output: Path, loss: _Loss, given: tuple[RopeFactors, ...] = (), **options) -> Outcome:
    strategy = _strategy(output, loss, given, **options)
    return strategy.session.run(strategy)


def _checks(outcome: Outcome) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for entry in outcome.history:
        if "validation" in entry:
            found.setdefault(entry["start"], []).append(entry["validation"])
    return found


def test_it_learns_and_drops_the_worse_half(tmp_path: Path) -> None:
    outcome = _learn(tmp_path, _Loss(), learn_attention_factor=True)
    checks = _checks(outcome)
    assert outcome.finished
    assert [len(values) for values in sorted(checks.values(), key=len)] == [1, 1, 2, ROUNDS + 1]
    best = min(min(values) for values in checks.values())
    assert math.log(outcome.perplexity) == pytest.approx(best, rel=1e-9)
    assert math.log(outcome.perplexity) < 0.5 * min(values[0] for values in checks.values())
    assert outcome.factors.method == "longrope2-learned"
    attention = outcome.factors.attention_factor
    assert (attention.short, attention.long) == (1.0, pytest.approx(WANTED_ATTENTION, abs=0.1))
    assert outcome.cost.steps == 2 * 3 + 7 * 3


@pytest.mark.parametrize(
    "options",
    [{}, {"starts": ("ramp",), "learn_attention_factor": True}, {"starts": ("ntk", "pi"), "steps": 5}],
)
def test_cost_is_known_before(tmp_path: Path, options) -> None:
    strategy = _strategy(tmp_path, _Loss(), **options)
    cost = strategy.session.run(strategy).cost
    assert strategy.expected_cost() == (cost.candidates, cost.steps)


def test_ramp_begins_where_it_does_best(tmp_path: Path) -> None:
    outcome = _learn(tmp_path, _Loss(sign=0), starts=("ramp",))
    vectors = [make_factors("yarn", beta_fast=one, truncate=False, **GEOMETRY) for one in RAMP_PERIODS]
    best = min(vectors, key=_Scorer().loss)
    assert outcome.factors.long_factor == best.long_factor != vectors[0].long_factor


def test_places_of_a_start_are_scored_only_until_they_have_lost(tmp_path: Path) -> None:
    cost = _learn(tmp_path, _Loss(sign=0), starts=("ramp",), samples=40).cost
    assert cost.pruned > 0
    assert cost.evaluations + cost.pruned == 40 * cost.candidates


def test_attention_factor_stays_1_unless_it_is_learned(tmp_path: Path) -> None:
    start = make_factors("yarn", attention_factor=True, **GEOMETRY)
    outcome = _learn(tmp_path, _Loss(), given=(start,), starts=())
    assert outcome.factors.attention_factor == AttentionFactor(1.0, 1.0)


def test_a_start_brings_its_attention_factor(tmp_path: Path) -> None:
    start = make_factors("yarn", attention_factor=True, **GEOMETRY)
    loss = _Loss(sign=0)  # nothing to learn: the start itself is the result
    outcome = _learn(tmp_path, loss, given=(start,), starts=(), learn_attention_factor=True)
    assert outcome.factors.attention_factor == start.attention_factor


@pytest.mark.parametrize("attention", [False, True])
def test_result_is_never_worse_than_the_best_start(tmp_path: Path, attention: bool) -> None:
    """Even where every step leads away."""
    options = {"learn_attention_factor": attention, "starts": ("ntk", "yarn", "pi")}
    outcome = _learn(tmp_path, _Loss(sign=-1), **options)
    checks = _checks(outcome)
    best = min(checks, key=lambda name: checks[name][0])
    assert math.log(outcome.perplexity) == checks[best][0]
    assert outcome.factors.provenance["start"] == best
    assert outcome.factors.long_factor == make_factors(best, **GEOMETRY).long_factor


def test_start_that_gives_nan_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = _Scorer.loss
    nan = torch.tensor(math.nan)
    monkeypatch.setattr(_Scorer, "loss", lambda self, one: nan if one.long_factor[0] > 1 else loss(self, one))
    checks = _checks(_learn(tmp_path, _Loss(), starts=("pi", "ntk", "yarn")))
    assert len(checks["pi"]) == 1


def test_needles_are_fresh_and_the_same_for_every_start(tmp_path: Path) -> None:
    loss = _Loss()
    _learn(tmp_path, loss)
    steps = {tuple(indices) for indices in loss.seen}
    assert len(steps) == 24
    assert len({index for indices in steps for index in indices}) == 48
    assert loss.seen.count(loss.seen[0]) == 2


def test_nan_step_is_skipped_and_counted_and_halves_the_rate(tmp_path: Path) -> None:
    smooth = _learn(tmp_path / "a", _Loss(), starts=("yarn",))
    rough = _learn(tmp_path / "b", _Loss(nan=(5,)), starts=("yarn",))
    assert (smooth.cost.failed, rough.cost.failed) == (0, 1)
    (skipped,) = (entry for entry in rough.history if "validation" not in entry and "loss" not in entry)
    assert skipped["step"] == 5
    assert all(map(math.isfinite, rough.factors.long_factor))
    state = read_state(tmp_path / "b" / "state.json", {"gradient": {"steps": 24}})
    assert state["strategy"]["starts"][0]["optimizer"]["slower"] == 0.5


def test_repeated_nan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"start yarn: step {3 + PATIENCE}: loss or gradient is not finite"):
        _learn(tmp_path, _Loss(nan=tuple(range(4, 30))), starts=("yarn",))


@pytest.mark.parametrize("die_at", [1, 3, 10, 17, 25])
@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_killed_and_restarted_gives_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int, interval: float
) -> None:
    monkeypatch.setattr(session_module, "SAVE_SECONDS", interval)
    options = {"learn_attention_factor": True}
    whole = _learn(tmp_path / "whole", _Loss(), **options)
    with pytest.raises(KeyboardInterrupt):
        _learn(tmp_path / "part", _Loss(die_at=die_at), **options)
    resumed = _learn(tmp_path / "part", _Loss(), **options)
    assert resumed.factors == whole.factors
    assert resumed.history == whole.history
    assert resumed.cost.steps == whole.cost.steps


def test_finished_search_is_not_repeated(tmp_path: Path) -> None:
    whole = _learn(tmp_path, _Loss())
    loss = _Loss()
    assert _learn(tmp_path, loss).factors == whole.factors
    assert loss.calls == 0


def test_time_that_is_over_gives_the_best_so_far(tmp_path: Path) -> None:
    outcome = _learn(tmp_path, _Loss(), max_minutes=1e-9)
    assert not outcome.finished
    assert outcome.cost.steps == 0
    assert _learn(tmp_path, _Loss()).finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": ()}, "--starts: there is none"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, options, message: str) -> None:
    with pytest.raises(InputError) as error:
        _learn(tmp_path, _Loss(), **options)
    assert message in str(error.value)


def test_objective_without_needles_is_refused() -> None:
    with pytest.raises(InputError, match="--objective: document: factors are learned on needles"):
        SearchSettings(
            load=Path(),
            books=Path(),
            output=Path(),
            target_length=2048,
            algorithm="gradient",
            objective=ObjectiveSettings(objective="document"),
        )
