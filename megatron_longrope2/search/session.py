"""The one loop of every search: progress, budgets, state, resuming."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.ranks import on_main
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import Scorer
from megatron_longrope2.search.candidate import Candidate, perplexity
from megatron_longrope2.search.race import Pair, Race
from megatron_longrope2.search.settings import SearchSettings

STATE_FORMAT = "longrope2-search-state/3"
SAVE_SECONDS = 2.0
"""The state is written once this much time has passed since it was written last, and at the end."""


@dataclass
class Cost:
    """What a search has spent, over all its runs.

    Attributes:
        candidates: factors proposed.
        evaluations: (candidate, sample) pairs scored.
        pruned: pairs that exact pruning saved.
        failed: candidates, or skipped steps of the gradient search, whose loss was NaN or infinite.
        steps: of the gradient search, all starts together.
        training_samples: needle documents in those steps.
        seconds: wall-clock, without loading the model.
    """

    candidates: int = 0
    evaluations: int = 0
    pruned: int = 0
    failed: int = 0
    steps: int = 0
    training_samples: int = 0
    seconds: float = 0.0

    def close(self, candidates: Sequence[Candidate]) -> None:
        """Count candidates whose evaluation is over."""
        missing = sum(int(one.losses.size) - one.scored for one in candidates)
        self.candidates += len(candidates)
        self.pruned += missing
        self.failed += sum(one.failed for one in candidates)


@dataclass
class Outcome:
    """What a search found.

    Attributes:
        factors: the winner.
        perplexity: the winner's, on the search set.
        finished: False when a budget ended the search early; it can be resumed.
        history: one entry a generation (or step), JSON-ready.
        cost: what it took.
        compared: what else belongs into the held-out comparison.
    """

    factors: RopeFactors
    perplexity: float
    finished: bool
    history: list[dict[str, Any]]
    cost: Cost
    compared: dict[str, RopeFactors] = field(default_factory=dict)


class Strategy(Protocol):
    """What a session runs: it proposes candidates, and may be stopped between any two calls of `advance`."""

    unit: str
    """What `done` and `total` count."""

    @property
    def done(self) -> int:
        """Units that are behind."""

    @property
    def total(self) -> int:
        """Units of the whole search, at most."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""

    def advance(self) -> bool:
        """Do a little work; False when the search is finished or its own budget is spent."""

    def status(self) -> dict[str, Any]:
        """What the progress bar says of the best so far."""

    def outcome(self) -> Outcome:
        """The best that is known exactly.

        Raises:
            InputError: nothing is.
        """

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as plain JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take in what `state` returned."""


class Session:
    """A search on a model: every rank runs the same one in step, and only losses are exchanged.

    The result depends neither on how many ranks there are nor on when the search was stopped and resumed.

    Args:
        settings: of the search.
        scorer: of the model.
        samples: that candidates are scored on; a score is the mean negative log-likelihood of all scored
            tokens.
        fingerprint: what a state must agree with to be resumed, as plain JSON values.
    """

    def __init__(
        self, settings: SearchSettings, scorer: Scorer, samples: Sequence[Sample], fingerprint: dict[str, Any]
    ) -> None:
        self.settings = settings
        self.scorer = scorer
        self.samples = tuple(samples)
        self.fingerprint = fingerprint
        self.cost = Cost()
        self.is_main = dist.get_rank() == 0
        self._weight = 1 / sum(sample.scored for sample in self.samples)
        self._started = time.monotonic()
        self._earlier = 0.0
        self._saved = 0.0
        self._writer: SummaryWriter | None = None

    def run(self, strategy: Strategy) -> Outcome:
        """Run a strategy to its end or to a budget's, from its saved state if there is one."""
        state = on_main(lambda: read_state(self._state_path, self.fingerprint))
        if state is not None:
            self.cost = Cost(**state["cost"])
            self._earlier = self.cost.seconds
            strategy.restore(state["strategy"])
        with tqdm(total=strategy.total, desc="search", unit=strategy.unit, disable=not self.is_main) as bar:
            bar.update(strategy.done)
            while strategy.advance():
                bar.update(strategy.done - bar.n)
                bar.set_postfix(strategy.status(), refresh=False)
                if time.monotonic() - self._saved > SAVE_SECONDS:
                    self._save(strategy)
                if self._out_of_time():
                    break
        self._save(strategy)
        if self._writer is not None:
            self._writer.close()
        return strategy.outcome()

    def score(self, pairs: Sequence[Pair]) -> None:
        """Score (candidate, sample) pairs and record the losses in the candidates."""
        samples = [self.samples[number] for _, number in pairs]
        scores = self.scorer(samples, [candidate.factors for candidate, _ in pairs])
        for (candidate, number), found in zip(pairs, scores, strict=True):
            candidate.losses[number] = found.total * self._weight
        self.cost.evaluations += len(pairs)

    def outcome(
        self,
        strategy: Strategy,
        factors: RopeFactors,
        score: float,
        history: list[dict[str, Any]],
        about: dict[str, Any],
        compared: dict[str, RopeFactors] | None = None,
    ) -> Outcome:
        """What a strategy found, with the provenance that every factor file has.

        Args:
            factors: the winner, without provenance.
            score: of the winner, nats a token.
            about: further provenance.
        """
        settings = self.settings
        provenance = {
            "seed": settings.seed,
            "objective": settings.objective.objective,
            **about,
            "samples": len(self.samples),
            "perplexity": perplexity(score),
            "model": str(settings.load),
            "finished": strategy.finished,
        }
        factors = replace(factors, provenance=provenance)
        return Outcome(factors, perplexity(score), strategy.finished, history, self.cost, compared or {})

    def race(self, candidates: Sequence[Candidate], keep: int) -> None:
        """Score candidates until the best `keep` of them are known exactly."""
        race = Race(candidates, keep)
        while pairs := race.pairs(self.scorer.workers):
            self.score(pairs)
        self.cost.close(candidates)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Write scalars for TensorBoard; a resumed run replaces what was written from this step on."""
        if not self.is_main:
            return
        if self._writer is None:
            self._writer = SummaryWriter(str(self.settings.output / "tensorboard"), purge_step=step)
        for name, value in scalars.items():
            self._writer.add_scalar(f"search/{name}", value, step)

    @property
    def _state_path(self) -> Path:
        return self.settings.output / "state.json"

    def _out_of_time(self) -> bool:
        """Whether `max_minutes` are over; all ranks agree."""
        limit = self.settings.max_minutes
        return limit is not None and on_main(lambda: time.monotonic() - self._started > 60 * limit)

    def _save(self, strategy: Strategy) -> None:
        self._saved = time.monotonic()
        self.cost.seconds = self._earlier + self._saved - self._started
        if self.is_main:
            state = {"strategy": strategy.state(), "cost": asdict(self.cost)}
            write_json(
                self._state_path, {"format": STATE_FORMAT, "settings": self.fingerprint, "state": state}
            )


def read_state(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The state at `path`, None where there is no file.

    Raises:
        InputError: it is not a state file, or was written with other settings, which are named.
    """
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != STATE_FORMAT:
        raise InputError(f"{path}: format: not a search state; remove it to start anew")
    found = _flat(value["settings"])
    for name, wanted in _flat(json.loads(json.dumps(fingerprint))).items():
        if found.get(name) != wanted:
            raise InputError(
                f"{path}: {name}: the state is of a search with {found.get(name)!r}, this one has {wanted!r}"
                "; give the same settings or another --output"
            )
    return value["state"]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    items: dict[str, Any] = {}
    for name, item in value.items():
        items |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return items
