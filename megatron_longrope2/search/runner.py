"""A search from start to end: model, samples, algorithm, held-out comparison, results."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_longrope2.data.books import read_books
from megatron_longrope2.data.needles import NeedleSampler
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.loading import LoadedModel, load_model
from megatron_longrope2.rope import RopeFactors, load_factors, make_factors
from megatron_longrope2.scoring.samples import Sample, document_samples
from megatron_longrope2.search.evolve import evolve
from megatron_longrope2.search.gradient import learn, most_candidates_and_steps
from megatron_longrope2.search.heldout import HELD_OUT_DEPTHS, compare, score_samples
from megatron_longrope2.search.job import Job, Outcome, SearchSettings, objective_digest, on_main
from megatron_longrope2.search.learned import LearnedFactors
from megatron_longrope2.search.model_loss import ModelLoss
from megatron_longrope2.search.objective import Objective, make_objective
from megatron_longrope2.search.report import write_results
from megatron_longrope2.search.scoring import ModelScorer
from megatron_longrope2.search.space import SearchSpace

ALGORITHMS: dict[str, Callable[[Job], Outcome]] = {"evolution": evolve, "gradient": learn}

HELD_OUT_SEED = 1_000_003
"""Added to the seed for the held-out needles: other values and places, and keys of the other pool."""


def run_search(settings: SearchSettings) -> dict[str, Any]:
    """Search, compare on held-out needles and write the results; the content of search.json.

    Raises:
        InputError: bad input, found before the search starts; or a state of another search.
    """
    job = prepare(settings)
    held_out_samples = held_out_needles(job)
    try:
        outcome = ALGORITHMS[settings.algorithm](job)
        methods = comparison_methods(outcome.factors, job.given) | outcome.compared
        held_out = None
        if held_out_samples:
            scores = score_samples(job.scorer, methods, held_out_samples, progress=job.is_main)
            held_out = compare(scores, outcome.factors.method)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise SystemExit(
                f"error: another rank of this job was lost ({str(error).splitlines()[0]}); "
                "run the same command again: the search continues from its last state"
            ) from error
        raise
    return on_main(lambda: write_results(job, outcome, methods, held_out))


def load(settings: SearchSettings) -> LoadedModel:
    """The model of a search; once a process."""
    return load_model(
        settings.load,
        tensor_model_parallel_size=settings.tensor_model_parallel_size,
        pipeline_model_parallel_size=settings.pipeline_model_parallel_size,
        context_parallel_size=settings.context_parallel_size,
        params_dtype=torch.bfloat16 if settings.bf16 else torch.float32,
        extra_arguments=_megatron_arguments(settings),
    )


def prepare(settings: SearchSettings, model: LoadedModel | None = None) -> Job:
    """Load the model, unless it is given, and draw the samples."""
    model = model or load(settings)
    rope = model.factors
    space = SearchSpace(
        rope.rope_base,
        rope.rotary_dim,
        rope.original_length,
        settings.target_length,
        settings.space,
        settings.dims,
        settings.fix_attention_factor,
    )
    sampler = NeedleSampler(
        model.tokenizer(),
        read_books(settings.books),
        seed=settings.evolution.seed,
        keys="train",
        needles_per_document=settings.needles_per_document,
        value_kind=settings.value_kind,
    )
    objective = _objective(settings, model, sampler)
    given = [
        load_factors(
            place,
            rope_base=rope.rope_base,
            rotary_dim=rope.rotary_dim,
            original_length=rope.original_length,
            target_length=settings.target_length,
        )
        for place in settings.init_factors
    ]
    return Job(
        settings=settings,
        scorer=ModelScorer(model),
        loss=ModelLoss(model),
        space=space,
        sampler=sampler,
        objective=objective,
        given=given,
        fingerprint=_fingerprint(settings, space, objective, given, model),
    )


def _megatron_arguments(settings: SearchSettings) -> tuple[str, ...]:
    # The fused kernel cannot apply an attention factor, and has no gradient for the angles.
    arguments = "--no-rope-fusion --attention-dropout 0 --hidden-dropout 0"
    if settings.algorithm == "gradient" and settings.recompute_activations:
        arguments += " --recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    return tuple(arguments.split())


def _objective(settings: SearchSettings, model: LoadedModel, sampler: NeedleSampler) -> Objective:
    length = settings.target_length
    needles = list(sampler.samples(settings.samples, length, settings.needle_depths))
    documents: list[Sample] = []
    if settings.objective != "needle":
        books = read_books(settings.books)
        documents = document_samples(
            model.tokenizer(), books, settings.samples, length, settings.evolution.seed
        )
    return make_objective(settings.objective, needles, documents, settings.document_weight)


def _fingerprint(
    settings: SearchSettings,
    space: SearchSpace,
    objective: Objective,
    given: list[RopeFactors],
    model: LoadedModel,
) -> dict[str, Any]:
    """What decides the result; parallel sizes and budgets do not."""
    if settings.algorithm == "gradient":
        own = {
            "gradient": {
                **asdict(settings.gradient),
                "starts": list(settings.gradient.starts),  # as JSON gives it back
                "seed": settings.evolution.seed,
            },
            "needles_per_document": settings.needles_per_document,
            "value_kind": settings.value_kind,
        }
    else:
        own = {"evolution": asdict(settings.evolution)}
    return {
        "algorithm": settings.algorithm,
        "model": str(Path(settings.load).resolve()),
        "iteration": int(model.args.iteration),
        "dtype": "bfloat16" if settings.bf16 else "float32",
        "space": asdict(space),
        **own,
        "objective": settings.objective,
        "samples": objective_digest(objective),
        "init_factors": [list(factors.long_factor) for factors in given],
    }


def comparison_methods(winner: RopeFactors, given: list[RopeFactors]) -> dict[str, RopeFactors]:
    """The winner first, the baselines at its critical dimension, and the warm starts."""
    common = {
        "rope_base": winner.rope_base,
        "rotary_dim": winner.rotary_dim,
        "original_length": winner.original_length,
        "target_length": winner.target_length,
    }
    methods = {winner.method: winner}
    for method in ("none", "pi", "ntk", "yarn", "ntk-rcd", "yarn-rcd"):
        dim = winner.critical_dim if method.endswith("-rcd") else None
        try:
            methods[method] = make_factors(method, critical_dim=dim, **common)  # type: ignore[arg-type]
        except InputError:
            continue  # YaRN-rcd whose ramp would start above this critical dimension
    methods["yarn+attention"] = make_factors("yarn", attention_factor=True, **common)  # type: ignore[arg-type]
    for number, factors in enumerate(given):
        methods[f"given {number}: {factors.method}"] = factors
    return methods


def held_out_needles(job: Job) -> list[Sample]:
    """Needles with other keys, values and places than the search's, at depths from start to end."""
    settings = job.settings
    if not settings.held_out_samples:
        return []
    sampler = NeedleSampler(
        job.sampler.tokenizer,
        read_books(settings.held_out_books or settings.books),
        seed=settings.evolution.seed + HELD_OUT_SEED,
        keys="held_out",
        value_kind=settings.value_kind,
    )
    drawn = sampler.samples(settings.held_out_samples, settings.target_length, HELD_OUT_DEPTHS)
    return [Sample.from_needle(sample) for sample in drawn]


def expected_cost(settings: SearchSettings) -> dict[str, Any]:
    """What a search would cost at most; an evaluation and a step are timed, each after one to warm up.

    Returns:
        `candidates`, `evaluations` (without pruning), `seconds_per_evaluation` of one data-parallel group,
        `steps`, `seconds_per_step` (0 for the evolution), `tokens`, `workers`, `seconds`, `gpu_hours`.
    """
    job = prepare(settings)
    factors = next(job.space.baselines())
    sample = job.objective.samples[0]
    seconds = _timed(lambda: job.scorer([(factors, sample)]))
    steps, seconds_per_step, trained = 0, 0.0, 0
    if settings.algorithm == "gradient":
        candidates, steps = most_candidates_and_steps(job)
        batch = [sample] * settings.gradient.batch_size
        seconds_per_step = _timed(lambda: job.loss(LearnedFactors(factors), batch))
        trained = steps * len(batch)
    else:
        candidates = settings.evolution.evaluations
        if settings.max_evaluations is not None:
            candidates = min(candidates, settings.max_evaluations)
    evaluations = candidates * len(job.objective.samples)
    total = evaluations * seconds / job.scorer.workers + steps * seconds_per_step
    return {
        "candidates": candidates,
        "evaluations": evaluations,
        "steps": steps,
        "tokens": (evaluations + trained) * settings.target_length,
        "workers": job.scorer.workers,
        "seconds_per_evaluation": seconds,
        "seconds_per_step": seconds_per_step,
        "seconds": total,
        "gpu_hours": total * dist.get_world_size() / 3600,
    }


def _timed(action: Callable[[], Any]) -> float:
    for _ in range(2):
        started = time.monotonic()
        action()
        seconds = time.monotonic() - started
    return seconds
