"""What every search algorithm is given and gives back."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from megatron_longrope2.data.needles import NeedleSampler, ValueKind
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.search.evolution import EvolutionSettings
from megatron_longrope2.search.learner import DifferentiableLoss, GradientSettings
from megatron_longrope2.search.objective import Objective, ObjectiveKind, Scorer
from megatron_longrope2.search.space import SearchDims, SearchSpace, SpaceKind

STATE_FORMAT = "longrope2-search-state/2"


@dataclass(frozen=True)
class SearchSettings:
    """Everything that a search is told; the options of `longrope2-search`.

    Attributes:
        load: Megatron checkpoint. books: where needles are hidden. output: folder of the results.
        target_length: tokens.
        samples, needle_depths, value_kind: of the objective; the gradient search checks itself on them.
        held_out_books: of the final comparison; None: the same books. held_out_samples: 0 for none.
        evolution, gradient: of the algorithm; both take their seed from `evolution`.
        recompute_activations: in the backward pass, layer by layer (gradient).
        max_evaluations: candidates (evolution). max_minutes: of this run.
    """

    load: Path
    books: Path
    output: Path
    target_length: int
    algorithm: Literal["evolution", "gradient"] = "evolution"
    samples: int = 10
    needle_depths: tuple[float, ...] = (0.0,)
    needles_per_document: int = 1
    value_kind: ValueKind = "number"
    objective: ObjectiveKind = "needle"
    document_weight: float = 0.5
    space: SpaceKind = "paper"
    dims: SearchDims = "critical"
    fix_attention_factor: bool = False
    evolution: EvolutionSettings = field(default_factory=EvolutionSettings)
    gradient: GradientSettings = field(default_factory=GradientSettings)
    recompute_activations: bool = True
    init_factors: tuple[str, ...] = ()
    prune: bool = True
    max_evaluations: int | None = None
    max_minutes: float | None = None
    held_out_books: Path | None = None
    held_out_samples: int = 64
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"--samples: {self.samples} is not a number of samples; use 1 or more")
        if self.held_out_samples < 0:
            raise InputError(f"--held-out-samples: {self.held_out_samples} is negative; use 0 for none")
        if self.max_evaluations is not None and self.max_evaluations < self.evolution.population:
            raise InputError(
                f"--max-evaluations: {self.max_evaluations} does not cover the first generation of "
                f"{self.evolution.population}; raise it or lower --population"
            )
        if self.algorithm == "gradient" and self.objective != "needle":
            raise InputError(f"--objective: {self.objective}: factors are learned on needles; use needle")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise InputError(f"--max-minutes: {self.max_minutes:g} is no time; use more than 0")


@dataclass
class Cost:
    """What a search has spent, over all its runs.

    Attributes:
        candidates: individuals proposed (gradient: factors checked).
        evaluations: (candidate, sample) pairs scored. pruned: pairs that exact pruning saved.
        failed: candidates, or skipped steps of the gradient search, whose loss was NaN or infinite.
        steps: of the gradient search, all starts together. training_samples: needle documents in them.
        seconds: wall-clock, without loading the model.
    """

    candidates: int = 0
    evaluations: int = 0
    pruned: int = 0
    failed: int = 0
    steps: int = 0
    training_samples: int = 0
    seconds: float = 0.0


@dataclass
class Outcome:
    """What an algorithm found.

    Attributes:
        factors: the winner. perplexity: its own, on the search set.
        finished: False when a budget ended the search early; it can be resumed.
        history: JSON-ready, one entry a generation (or step).
        compared: what else belongs into the held-out comparison.
    """

    factors: RopeFactors
    perplexity: float
    finished: bool
    history: list[dict[str, Any]]
    cost: Cost
    compared: dict[str, RopeFactors] = field(default_factory=dict)


@dataclass
class Job:
    """A search on a loaded model, on every rank.

    Attributes:
        loss: what the gradient search minimises.
        sampler: of the search's needles, with training keys.
        given: warm starts.
        fingerprint: what a state must agree with to be resumed.
    """

    settings: SearchSettings
    scorer: Scorer
    loss: DifferentiableLoss
    space: SearchSpace
    sampler: NeedleSampler
    objective: Objective
    given: list[RopeFactors]
    fingerprint: dict[str, Any]
    started: float = field(default_factory=time.monotonic)

    @property
    def state_path(self) -> Path:
        """Where the state for resuming is."""
        return self.settings.output / "state.json"

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return dist.get_rank() == 0

    def out_of_time(self) -> bool:
        """Whether `max_minutes` are over; all ranks agree."""
        limit = self.settings.max_minutes
        return limit is not None and on_main(lambda: time.monotonic() - self.started > 60 * limit)

    def load_state(self) -> dict[str, Any] | None:
        """The state of an earlier run with the same settings, None where there is none.

        Raises:
            InputError: it cannot be read, or is of other settings.
        """
        return on_main(lambda: read_state(self.state_path, self.fingerprint))

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the state whole; on the main rank only."""
        if self.is_main:
            write_json(
                self.state_path, {"format": STATE_FORMAT, "settings": self.fingerprint, "state": state}
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
    for name, wanted in _flat(fingerprint).items():
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


def on_main[T](function: Callable[[], T]) -> T:
    """Call `function` on the main rank and give every rank its result, or its InputError."""
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [(True, function())]
        except InputError as error:
            box = [(False, str(error))]
    dist.broadcast_object_list(box, src=0)
    succeeded, result = box[0]
    if not succeeded:
        raise InputError(result)
    return result


def objective_digest(objective: Objective) -> str:
    """SHA-256 of the samples and their weights."""
    digest = hashlib.sha256(repr(objective.weights).encode())
    for sample in objective.samples:
        digest.update(sample.tokens.numpy().tobytes())
        digest.update(sample.mask.numpy().tobytes())
    return digest.hexdigest()
