"""The evolution on a toy scorer: stopping and resuming anywhere, budgets, states of other searches."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_longrope2.errors import InputError
from megatron_longrope2.search import evolve as evolve_module
from megatron_longrope2.search import job as job_module
from megatron_longrope2.search.evolution import EvolutionSettings
from megatron_longrope2.search.evolve import evolve
from megatron_longrope2.search.job import Job, SearchSettings, read_state
from megatron_longrope2.search.objective import Objective, Sample
from megatron_longrope2.search.space import SearchSpace

SAMPLES = 5


class _ToyScorer:
    """Losses from the factors and the sample's number; dies at call number `die_at`."""

    def __init__(self, loss, workers: int = 1, die_at: int | None = None) -> None:
        self.loss, self.workers, self.die_at = loss, workers, die_at
        self.calls = 0

    def __call__(self, jobs) -> list[float]:
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        return [self.loss(factors, int(sample.tokens[0])) for factors, sample in jobs]


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(get_rank=lambda: 0, broadcast_object_list=lambda box, src: None)  # noqa: ARG005
    monkeypatch.setattr(job_module, "dist", alone)


def _job(output: Path, scorer: _ToyScorer, space: str = "paper", seed: int = 0, **options) -> Job:
    settings = SearchSettings(
        load=Path("model"),
        books=Path("books"),
        output=output,
        target_length=2048,
        space=space,
        evolution=EvolutionSettings(16, 4, seed=seed, parents=4),
        **options,
    )
    samples = tuple(Sample(torch.tensor([i, 0]), torch.tensor([False, True])) for i in range(SAMPLES))
    return Job(
        settings=settings,
        scorer=scorer,
        loss=None,
        space=SearchSpace(10000.0, 64, 256, 2048, space),
        sampler=None,
        objective=Objective(samples, (0.01,) * SAMPLES),
        given=[],
        fingerprint={"seed": seed, "evolution": {"population": 16}},
    )


@pytest.fixture
def whole(tmp_path: Path, toy_loss):
    return evolve(_job(tmp_path / "whole", _ToyScorer(toy_loss)))


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
    """Whether the last state is of the last batch or of the last generation."""
    monkeypatch.setattr(evolve_module, "SAVE_SECONDS", interval)
    with pytest.raises(KeyboardInterrupt):
        evolve(_job(tmp_path / "part", _ToyScorer(toy_loss, die_at=die_at)))
    resumed = _ToyScorer(toy_loss, workers=3)
    outcome = evolve(_job(tmp_path / "part", resumed))
    assert outcome.factors == whole.factors
    assert outcome.history == whole.history
    if interval == 0:
        # Nothing that was scored is scored again; workers=3 takes up to three pairs a call.
        assert resumed.calls < whole.cost.evaluations - (die_at - 1)


def test_finished_search_is_not_repeated(tmp_path: Path, toy_loss, whole) -> None:
    scorer = _ToyScorer(toy_loss)
    assert evolve(_job(tmp_path / "whole", scorer)).history == whole.history
    assert scorer.calls == 0


def test_without_pruning_the_result_is_the_same(tmp_path: Path, toy_loss, whole) -> None:
    outcome = evolve(_job(tmp_path / "full", _ToyScorer(toy_loss), prune=False))
    assert (outcome.factors, outcome.history) == (whole.factors, whole.history)
    assert outcome.cost.pruned == 0 < whole.cost.pruned


def test_evaluation_budget_stops_before_the_generation_that_exceeds_it(tmp_path, toy_loss, whole) -> None:
    outcome = evolve(_job(tmp_path / "part", _ToyScorer(toy_loss), max_evaluations=30))
    assert not outcome.finished
    assert outcome.cost.candidates == 24
    assert outcome.history == whole.history[:2]
    assert evolve(_job(tmp_path / "part", _ToyScorer(toy_loss))).history == whole.history


def test_time_budget_stops_within_a_generation_and_goes_on_later(
    tmp_path: Path, toy_loss, whole, monkeypatch
) -> None:
    calls = iter(range(1000))
    monkeypatch.setattr(Job, "out_of_time", lambda _: next(calls) == 90)
    outcome = evolve(_job(tmp_path / "part", _ToyScorer(toy_loss), max_minutes=1.0))
    assert not outcome.finished
    assert outcome.perplexity >= whole.perplexity
    monkeypatch.setattr(Job, "out_of_time", lambda _: False)
    assert evolve(_job(tmp_path / "part", _ToyScorer(toy_loss))).history == whole.history


def test_time_over_before_anything_is_known(tmp_path: Path, toy_loss, monkeypatch) -> None:
    monkeypatch.setattr(Job, "out_of_time", lambda _: True)
    with pytest.raises(InputError, match="over before any candidate was scored whole"):
        evolve(_job(tmp_path / "part", _ToyScorer(toy_loss), max_minutes=1.0))


def test_nan_candidates_are_counted(tmp_path: Path, toy_loss) -> None:
    def loss(factors, sample: int) -> float:
        return math.nan if factors.critical_dim == 7 else toy_loss(factors, sample)

    outcome = evolve(_job(tmp_path / "nan", _ToyScorer(loss)))
    assert outcome.cost.failed > 0
    assert outcome.factors.critical_dim != 7


def test_state_of_other_settings_is_refused(tmp_path: Path, toy_loss, whole) -> None:  # noqa: ARG001
    with pytest.raises(
        InputError, match=r"state.json: seed: the state is of a search with 0, this one has 1; give"
    ):
        evolve(_job(tmp_path / "whole", _ToyScorer(toy_loss), seed=1))


def test_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"format": "something"}))
    with pytest.raises(InputError, match="format: not a search state"):
        read_state(path, {})
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_state(path, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "--samples: 0 is not a number of samples"),
        ({"held_out_samples": -1}, "--held-out-samples: -1 is negative"),
        ({"max_evaluations": 3}, "--max-evaluations: 3 does not cover the first generation of 16"),
        ({"max_minutes": 0.0}, "--max-minutes: 0 is no time"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, toy_loss, options, message) -> None:
    with pytest.raises(InputError, match=message):
        _job(tmp_path, _ToyScorer(toy_loss), **options)
