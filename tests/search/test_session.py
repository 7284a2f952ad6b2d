"""The session's loop with the evolution on a toy scorer: stopping and resuming anywhere, and budgets."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_longrope2.errors import InputError
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import TokenScores
from megatron_longrope2.search import session as session_module
from megatron_longrope2.search.evolution import Evolution
from megatron_longrope2.search.session import Outcome, Session, read_state
from megatron_longrope2.search.settings import EvolutionSettings, SearchSettings
from tests.search.conftest import demo_space

SAMPLES = 5


class _ToyScorer:
    """Losses from the factors and the sample's number; dies at call number `die_at`."""

    def __init__(self, loss, workers: int = 1, die_at: int | None = None) -> None:
        self.loss, self.workers, self.die_at = loss, workers, die_at
        self.calls = 0

    def __call__(self, samples, factors) -> list[TokenScores]:
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        losses = [self.loss(one, int(s.tokens[0])) for one, s in zip(factors, samples, strict=True)]
        return [TokenScores(torch.tensor([loss]), torch.tensor([False])) for loss in losses]


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(get_rank=lambda: 0, broadcast_object_list=lambda box, src: None)  # noqa: ARG005
    monkeypatch.setattr(session_module, "dist", alone)


def _settings(output: Path, seed: int = 0, max_minutes: float | None = None, **evolution) -> SearchSettings:
    return SearchSettings(
        load=Path("model"),
        books=Path("books"),
        output=output,
        target_length=2048,
        seed=seed,
        max_minutes=max_minutes,
        evolution=EvolutionSettings(population=16, iterations=4, parents=4, **evolution),
    )


def _evolve(output: Path, scorer: _ToyScorer, prune: bool = True, **options) -> Outcome:
    settings = _settings(output, **options)
    samples = [Sample(torch.tensor([i, 0]), torch.tensor([False, True])) for i in range(SAMPLES)]
    fingerprint = {"seed": settings.seed, "evolution": {"population": 16}}
    session = Session(settings, scorer, samples, fingerprint)
    return session.run(Evolution(session, demo_space(), prune=prune))


@pytest.fixture
def whole(tmp_path: Path, toy_loss):
    return _evolve(tmp_path / "whole", _ToyScorer(toy_loss))


def test_unbroken_search_is_finished(whole) -> None:
    assert whole.finished
    assert len(whole.history) == 5
    assert whole.factors.method == "longrope2"
    assert (
        whole.factors.provenance["perplexity"]
        == whole.perplexity
        == math.exp(whole.history[-1]["best_score"])
    )
    assert whole.cost.evaluations + whole.cost.pruned == whole.cost.candidates * SAMPLES == 48 * SAMPLES


@pytest.mark.parametrize("die_at", [1, 7, 60, 81, 100, 150])
@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_killed_and_restarted_gives_the_same_result(
    tmp_path: Path, toy_loss, whole, monkeypatch, die_at, interval
) -> None:
    """Whether the last state is of the last batch or there is none."""
    monkeypatch.setattr(session_module, "SAVE_SECONDS", interval)
    with pytest.raises(KeyboardInterrupt):
        _evolve(tmp_path / "part", _ToyScorer(toy_loss, die_at=die_at))
    resumed = _ToyScorer(toy_loss, workers=3)
    outcome = _evolve(tmp_path / "part", resumed)
    assert outcome.factors == whole.factors
    assert outcome.history == whole.history
    if interval == 0:
        # Nothing that was scored is scored again; workers=3 takes up to three pairs a call.
        assert resumed.calls < whole.cost.evaluations - (die_at - 1)


def test_finished_search_is_not_repeated(tmp_path: Path, toy_loss, whole) -> None:
    scorer = _ToyScorer(toy_loss)
    assert _evolve(tmp_path / "whole", scorer).history == whole.history
    assert scorer.calls == 0


def test_without_pruning_the_result_is_the_same(tmp_path: Path, toy_loss, whole) -> None:
    outcome = _evolve(tmp_path / "full", _ToyScorer(toy_loss), prune=False)
    assert (outcome.factors, outcome.history) == (whole.factors, whole.history)
    assert outcome.cost.pruned == 0 < whole.cost.pruned


def test_evaluation_budget_stops_before_the_generation_that_exceeds_it(tmp_path, toy_loss, whole) -> None:
    outcome = _evolve(tmp_path / "part", _ToyScorer(toy_loss), max_evaluations=30)
    assert not outcome.finished
    assert outcome.cost.candidates == 24
    assert outcome.history == whole.history[:2]
    assert _evolve(tmp_path / "part", _ToyScorer(toy_loss)).history == whole.history


def test_time_budget_stops_within_a_generation_and_resumes_later(
    tmp_path: Path, toy_loss, whole, monkeypatch
) -> None:
    calls = iter(range(1000))
    monkeypatch.setattr(Session, "_out_of_time", lambda _: next(calls) == 90)
    outcome = _evolve(tmp_path / "part", _ToyScorer(toy_loss), max_minutes=1.0)
    assert not outcome.finished
    assert outcome.perplexity >= whole.perplexity
    monkeypatch.setattr(Session, "_out_of_time", lambda _: False)
    assert _evolve(tmp_path / "part", _ToyScorer(toy_loss)).history == whole.history


def test_time_over_before_anything_is_known(tmp_path: Path, toy_loss, monkeypatch) -> None:
    monkeypatch.setattr(Session, "_out_of_time", lambda _: True)
    with pytest.raises(InputError, match="over before any candidate was scored whole"):
        _evolve(tmp_path / "part", _ToyScorer(toy_loss), max_minutes=1.0)


def test_nan_candidates_are_counted(tmp_path: Path, toy_loss) -> None:
    def loss(factors, sample: int) -> float:
        return math.nan if factors.critical_dim == 7 else toy_loss(factors, sample)

    outcome = _evolve(tmp_path / "nan", _ToyScorer(loss))
    assert outcome.cost.failed > 0
    assert outcome.factors.critical_dim != 7


def test_state_of_other_settings_is_refused(tmp_path: Path, toy_loss, whole) -> None:  # noqa: ARG001
    with pytest.raises(
        InputError, match=r"state.json: seed: the state is of a search with 0, this one has 1; give"
    ):
        _evolve(tmp_path / "whole", _ToyScorer(toy_loss), seed=1)


def test_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"format": "something"}))
    with pytest.raises(InputError, match="format: not a search state"):
        read_state(path, {})
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_state(path, {})
