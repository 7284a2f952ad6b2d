"""Factors learned by gradient against the evolution and the closed-form methods: cost and held-out needles.

All searches run in this process, one after the other. Baselines are PI, NTK and YaRN, each with the
attention factor that does best on the search's own samples. Cost is processor time, which other programs do
not distort.
"""

import math
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from megatron_longrope2.benchmarks import Measurement

ATTENTION_FACTORS = (1.0, 1.1, 1.2, 1.3, 1.4)

KINDS: dict[str, dict[str, Any]] = {
    "paper": {"space": "paper"},
    "paper, documents": {"space": "paper", "objective": "document"},
    "extended": {"space": "extended"},
    "extended, attention factor 1": {"space": "extended", "fix_attention_factor": True},
    "extended, documents": {"space": "extended", "objective": "document"},
    "learned, attention factor 1": {"algorithm": "gradient"},
    "learned": {"algorithm": "gradient"},
}
"""What is run, and how it differs from `SearchSettings`' defaults."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--load", type=Path, required=True, help="Megatron checkpoint of the model")
    parser.add_argument("--books", type=Path, required=True, help="texts that needles are hidden in")
    parser.add_argument("--held-out-books", type=Path, required=True, help="texts of the comparison")
    parser.add_argument("--target-length", type=int, required=True, help="extended window, tokens")
    parser.add_argument("--searches", nargs="+", choices=list(KINDS), default=list(KINDS), help="what to run")
    parser.add_argument("--bf16", action="store_true", help="the model in bf16 instead of float32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one comparison each")
    parser.add_argument("--population", type=int, default=32, help="of the evolution")
    parser.add_argument("--iterations", type=int, default=10, help="of the evolution")
    parser.add_argument("--steps", type=int, default=48, help="of the gradient search")
    parser.add_argument("--samples", type=int, default=20, help="needles of a search, at five depths")
    parser.add_argument("--held-out-samples", type=int, default=64, help="needles of the comparison")


def measure(args: Namespace) -> Measurement:
    """Run the searches for every seed and compare their results on held-out needles."""
    from megatron_longrope2 import device

    device.install()
    from megatron_longrope2.search.runner import load

    model = load(_settings(args, args.seeds[0], "learned", Path("unused")))
    seeds = {str(seed): _compare(args, seed, model) for seed in args.seeds}
    return Measurement(
        settings={
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
            if name not in ("output", "name")
        },
        ratios=_ratios(list(seeds.values())),
        measured={"seeds": seeds},
    )


def _settings(args: Namespace, seed: int, kind: str, output: Path) -> Any:
    from megatron_longrope2.search.evolution import EvolutionSettings
    from megatron_longrope2.search.job import SearchSettings
    from megatron_longrope2.search.learner import GradientSettings

    return SearchSettings(
        load=args.load,
        books=args.books,
        held_out_books=args.held_out_books,
        held_out_samples=args.held_out_samples,
        output=output,
        target_length=args.target_length,
        samples=args.samples,
        needle_depths=(0.0, 0.25, 0.5, 0.75, 0.95),
        evolution=EvolutionSettings(args.population, args.iterations, seed=seed),
        gradient=GradientSettings(steps=args.steps, learn_attention_factor=kind == "learned"),
        recompute_activations=False,
        bf16=args.bf16,
        **KINDS[kind],
    )


def _compare(args: Namespace, seed: int, model: Any) -> dict[str, Any]:
    """{`cpu_seconds`: of each search; `methods`: as `heldout.compare`; `comparisons`: of each; `factors`}."""
    from megatron_longrope2.search.heldout import compare, score_samples
    from megatron_longrope2.search.runner import ALGORITHMS, held_out_needles, prepare

    seconds: dict[str, float] = {}
    methods: dict[str, Any] = {}
    for kind in args.searches:
        with TemporaryDirectory() as folder:
            job = prepare(_settings(args, seed, kind, Path(folder) / "search"), model)
            before = time.process_time()
            outcome = ALGORITHMS[job.settings.algorithm](job)
            seconds[kind] = time.process_time() - before
        methods[kind] = outcome.factors
        methods |= {f"{kind}, {name}": factors for name, factors in outcome.compared.items()}
    methods |= _baselines(job)
    scores = score_samples(job.scorer, methods, held_out_needles(job), progress=True)
    comparisons = {kind: compare(scores, kind)["comparisons"] for kind in args.searches}
    table = compare(scores, args.searches[0])["methods"]
    for name, row in table.items():
        print(f"seed {seed}, {name}: {row['nll']:.4f} +- {row['ci95']:.4f}", file=sys.stderr, flush=True)
    factors = {name: value.to_dict() for name, value in methods.items()}
    return {"cpu_seconds": seconds, "methods": table, "comparisons": comparisons, "factors": factors}


def _baselines(job: Any) -> dict[str, Any]:
    """The closed-form methods, without and with their best attention factor on the search's samples."""
    from megatron_longrope2.rope import AttentionFactor

    found = {}
    for method in ("pi", "ntk", "yarn"):
        (plain,) = job.space.closed_form(method)
        options = [replace(plain, attention_factor=AttentionFactor(long=one)) for one in ATTENTION_FACTORS]
        losses = [
            math.fsum(job.scorer([(one, sample) for sample in job.objective.samples])) for one in options
        ]
        found[method] = plain
        found[f"{method}, best attention factor"] = options[losses.index(min(losses))]
    return found


def _ratios(seeds: list[dict[str, Any]]) -> dict[str, float]:
    """Of the means over the seeds; below 1 is better than what it is compared with."""

    def nll(*names: str) -> float:
        return sum(min(seed["methods"][name]["nll"] for name in names) for seed in seeds)

    ratios = {}
    ran = seeds[0]["cpu_seconds"]
    baselines = [name for name in seeds[0]["methods"] if name.endswith("best attention factor")]
    for kind, suffix in (("learned", ""), ("learned, attention factor 1", "_attention_factor_1")):
        if kind not in ran:
            continue
        ratios[f"nll_vs_best_baseline{suffix}"] = nll(kind) / nll(*baselines)
        for evolution, name in (("paper", "evolution"), ("extended", "extended_evolution")):
            if evolution in ran:
                ratios[f"nll_vs_{name}{suffix}"] = nll(kind) / nll(evolution)
                costs = [seed["cpu_seconds"] for seed in seeds]
                ratios[f"cost_vs_{name}{suffix}"] = sum(one[kind] for one in costs) / sum(
                    one[evolution] for one in costs
                )
    for space, suffix in (("paper", ""), ("extended", "_extended")):
        if {space, f"{space}, documents"} <= set(ran):
            ratios[f"nll_needles_vs_documents{suffix}"] = nll(space) / nll(f"{space}, documents")
    return ratios
