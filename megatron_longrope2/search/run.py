"""A search from start to end: model, samples, strategy, held-out comparison, results."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.data.documents import draw_books
from megatron_longrope2.data.needles import MOST_BOOKS, NeedleSampler, books_for
from megatron_longrope2.data.settings import Keys
from megatron_longrope2.data.wording import wording
from megatron_longrope2.model.learned_factors import LearnedFactors
from megatron_longrope2.model.loading import LoadedModel, load_model
from megatron_longrope2.ranks import on_main
from megatron_longrope2.rope import RopeFactors, load_factors, make_factors, with_longrope_attention
from megatron_longrope2.scoring.megatron import MegatronScorer
from megatron_longrope2.scoring.samples import Sample, document_samples
from megatron_longrope2.search.evolution import Evolution
from megatron_longrope2.search.gradient import GradientSearch
from megatron_longrope2.search.heldout import HELD_OUT_DEPTHS, compare, comparison_methods, score_samples
from megatron_longrope2.search.needle_loss import NeedleLoss
from megatron_longrope2.search.report import write_results
from megatron_longrope2.search.session import Session
from megatron_longrope2.search.settings import SearchSettings
from megatron_longrope2.search.space import SearchSpace

HELD_OUT_SEED = 1_000_003
"""Added to the seed for the held-out needles: other values and places, and keys of the other pool."""


@dataclass(frozen=True)
class Search:
    """A search that is ready to run.

    Attributes:
        strategy: what proposes candidates.
        given: warm starts.
        held_out: needles with other keys, values and places than the search's, at depths from start to end.
    """

    session: Session
    space: SearchSpace
    strategy: Evolution | GradientSearch
    given: Sequence[RopeFactors]
    held_out: Sequence[Sample]


def run_search(settings: SearchSettings) -> dict[str, Any]:
    """Search, compare on held-out needles and write the results; the content of search.json.

    Raises:
        InputError: bad input, found before the search starts; or a state of another search.
    """
    search = prepare(settings)
    try:
        outcome = search.session.run(search.strategy)
        methods = comparison_methods(search.space, outcome.factors, search.given) | outcome.compared
        held_out = None
        if search.held_out:
            scores = score_samples(search.session.scorer, methods, search.held_out)
            held_out = compare(scores, outcome.factors.method)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise SystemExit(
                f"error: another rank of this job was lost ({str(error).splitlines()[0]}); "
                "run the same command again: the search continues from its last state"
            ) from error
        raise
    return on_main(lambda: write_results(search.session, search.space, outcome, methods, held_out))


def load(settings: SearchSettings) -> LoadedModel:
    """The model of a search; once a process."""
    return load_model(settings.load, settings.layout, **model_arguments(settings))


def model_arguments(settings: SearchSettings) -> dict[str, Any]:
    """What a search wants of Megatron beside the layout."""
    if settings.algorithm == "evolution":
        return {}
    # Transformer Engine's fused kernel has no gradient for the angles.
    arguments: dict[str, Any] = {"apply_rope_fusion": False}
    if settings.gradient.no_recompute:
        return arguments
    recompute = {"granularity": "full", "method": "uniform", "num_layers": 1}
    return arguments | {f"recompute_{name}": value for name, value in recompute.items()}


def prepare(settings: SearchSettings, model: LoadedModel | None = None) -> Search:
    """Load the model, unless it is given, and draw the samples.

    Raises:
        InputError: bad input.
    """
    model = model or load(settings)
    tokenizer, chosen = model.tokenizer(), settings.space
    facts = model.factors.facts | {"target_length": settings.target_length}
    unscaled = make_factors("none", **facts)
    if chosen.longrope_attention_factor:
        unscaled = with_longrope_attention(unscaled)
    space = SearchSpace(unscaled, chosen.search_space, chosen.search_dims, chosen.fix_attention_factor)
    length, seed, count = settings.target_length, settings.seed, settings.samples
    # Factors are learned on needles without end.
    needles = MOST_BOOKS if settings.algorithm == "gradient" else count
    sampler = _sampler(settings, tokenizer, settings.books, "train", needles)
    if settings.objective.objective == "document":
        books = draw_books(settings.books, seed, length)
        samples = on_main(lambda: document_samples(tokenizer, books, count, length, seed))
    else:
        drawn = sampler.samples(count, length, settings.needle_depths)
        samples = [Sample.from_needle(one) for one in drawn]
    given = [load_factors(place, **facts) for place in settings.init_factors]
    fingerprint = _fingerprint(settings, samples, given, model)
    session = Session(settings, MegatronScorer(model), samples, fingerprint)
    strategy: Evolution | GradientSearch
    if settings.algorithm == "gradient":
        strategy = GradientSearch(session, space, NeedleLoss(model), sampler, given)
    else:
        strategy = Evolution(session, space, given)
    return Search(session, space, strategy, given, _held_out(settings, tokenizer))


def _held_out(settings: SearchSettings, tokenizer: PreTrainedTokenizerFast) -> list[Sample]:
    objective = settings.objective
    if not objective.held_out_samples:
        return []
    count, books = objective.held_out_samples, objective.held_out_books or settings.books
    drawn = _sampler(settings, tokenizer, books, "held_out", count).samples(
        count, settings.target_length, HELD_OUT_DEPTHS
    )
    return [Sample.from_needle(one) for one in drawn]


def _sampler(
    settings: SearchSettings, tokenizer: PreTrainedTokenizerFast, path: Path, keys: Keys, samples: int
) -> NeedleSampler:
    """A sampler on every rank, of books that the main rank reads and tokenizes."""
    seed = settings.seed + (HELD_OUT_SEED if keys == "held_out" else 0)
    books = draw_books(path, seed, settings.target_length)
    options: dict[str, Any] = {
        "lengths": (settings.target_length,),
        "most_books": books_for(samples, settings.target_length),
        "wording": wording(settings.objective.needle_wording),
    }
    return on_main(lambda: NeedleSampler(tokenizer, books, seed=seed, keys=keys, **options))


def _fingerprint(
    settings: SearchSettings, samples: Sequence[Sample], given: list[RopeFactors], model: LoadedModel
) -> dict[str, Any]:
    """What decides the result; parallel sizes and budgets do not."""
    own = asdict(settings.gradient if settings.algorithm == "gradient" else settings.evolution)
    own = {name: value for name, value in own.items() if name not in ("max_evaluations", "no_recompute")}
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.tokens.numpy().tobytes())
        digest.update(sample.mask.numpy().tobytes())
    return {
        "algorithm": settings.algorithm,
        "seed": settings.seed,
        "model": str(Path(settings.load).resolve()),
        "iteration": int(model.args.iteration),
        "dtype": str(model.args.params_dtype).removeprefix("torch."),
        "target_length": settings.target_length,
        "space": asdict(settings.space),
        settings.algorithm: own,
        "objective": settings.objective.objective,
        "samples": digest.hexdigest(),
        "init_factors": [list(factors.long_factor) for factors in given],
    }


def expected_cost(settings: SearchSettings) -> dict[str, Any]:
    """What a search costs at most, without pruning; an evaluation and a step are timed."""
    search = prepare(settings)
    session, strategy = search.session, search.strategy
    factors, sample = next(search.space.baselines()), session.samples[0]
    workers, evaluation = session.scorer.workers, _timed(lambda: session.scorer([sample], [factors]))
    candidates, steps, step, trained = settings.evolution.candidates, 0, 0.0, 0
    if isinstance(strategy, GradientSearch):
        candidates, steps = strategy.expected_cost()
        batch = [sample] * settings.gradient.batch_size
        step = _timed(lambda: strategy.loss(LearnedFactors(factors), batch))
        trained = steps * len(batch)
    evaluations = candidates * len(session.samples)
    seconds = evaluations * evaluation / workers + steps * step
    return {
        "candidates": candidates,
        "evaluations": evaluations,
        "evaluations at once": workers,
        "seconds an evaluation": evaluation,
        "steps": steps,
        "seconds a step": step,
        "tokens": (evaluations + trained) * settings.target_length,
        "hours": seconds / 3600,
        "device hours": seconds / 3600 * dist.get_world_size(),
    }


def _timed(action: Callable[[], Any]) -> float:
    """Seconds of the second call; the first one warms up."""
    for _ in range(2):
        started = time.monotonic()
        action()
        seconds = time.monotonic() - started
    return seconds
