"""The factor search against scoring every candidate in full through transformers, one by one.

Ours is `longrope2-search` with its pruning, logits of the scored tokens only, and a process of one thread a
worker. The other evaluates every sample of every candidate with `LlamaForCausalLM(input_ids, labels)`, full
logits and all cores, as the authors' script does: once in our evolution (`speedup_vs_full_evaluation`), and
once in theirs, the paper's space with half the population as parents, against ours until it is as good
(`speedup_vs_authors_search`). Times are seconds on the clock without loading, which is what a user waits for:
run it on an idle machine.
"""

import json
import math
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from megatron_longrope2.benchmarks import Measurement

ROUNDING = 1e-5
"""Nats by which the same factors differ between the two implementations, in float32."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--load", type=Path, required=True, help="Megatron checkpoint of the model")
    add("--hf-dir", type=Path, required=True, help="Hugging Face folder of the same model")
    add("--books", type=Path, required=True, help="texts that needles are hidden in")
    add("--target-length", type=int, default=2048, help="extended window, tokens")
    add("--spaces", nargs="+", choices=["paper", "extended"], default=["extended"], help="search spaces")
    add("--population", type=int, default=32, help="members of the first generation")
    add("--iterations", type=int, default=10, help="generations after the first")
    add("--samples", type=int, default=10, help="needles of a candidate's score")
    add("--seed", type=int, default=0, help="of the samples and the evolution")
    add("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1], help="processes of our search")
    add("--bf16", action="store_true", help="both in bf16 instead of float32")


def measure(args: Namespace) -> Measurement:
    """Run our search with each number of workers, the same one through transformers, and the authors'.

    Raises:
        RuntimeError: a search failed, or the number of workers changed its result.
    """
    ours = {space: _our_searches(args, space) for space in args.spaces}
    full = _full_searches(args)
    authors = full.pop("authors")
    ratios: dict[str, float] = {}
    for space in args.spaces:
        suffix = "" if space == args.spaces[0] else f"_{space}"
        costs = [found["cost"] for found in ours[space].values()]
        ratios |= {
            f"speedup_vs_full_evaluation{suffix}": full[space]["seconds"]
            / min(one["seconds"] for one in costs),
            f"speedup_of_workers{suffix}": costs[0]["seconds"] / costs[-1]["seconds"],
            f"speedup_of_pruning{suffix}": full[space]["evaluations"] / costs[0]["evaluations"],
            f"perplexity_vs_full_evaluation{suffix}": ours[space][args.workers[0]]["perplexity"]
            / full[space]["perplexity"],
        }
    as_good = _as_good(args, ours[args.spaces[0]][args.workers[0]], authors)
    if as_good:
        ratios["speedup_vs_authors_search"] = authors["seconds"] / as_good["seconds"]
        ratios["perplexity_vs_authors_search"] = as_good["perplexity"] / authors["perplexity"]
    return Measurement(
        settings={
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
            if name not in ("output", "name")
        },
        ratios=ratios,
        measured={
            "ours": {
                space: {workers: _summary(found) for workers, found in several.items()}
                for space, several in ours.items()
            },
            "full": full,
            "authors": authors,
            "as_good_as_authors": as_good,
        },
    )


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    cost = {name: report["cost"][name] for name in ("seconds", "evaluations", "pruned")}
    return cost | {"perplexity": report["perplexity"], "generations": len(report["history"])}


def _our_searches(args: Namespace, space: str) -> dict[int, dict[str, Any]]:
    """search.json for each number of workers."""
    found = {workers: _our_search(args, space, workers, args.iterations) for workers in args.workers}
    if len({(one["perplexity"], *one["factors"]["long_factor"]) for one in found.values()}) > 1:
        raise RuntimeError("the number of workers changed the search's result")
    return found


def _as_good(args: Namespace, report: dict[str, Any], authors: dict[str, Any]) -> dict[str, Any] | None:
    """Our search, run up to the first generation that is as good as the authors' result; None if none is."""
    goal = math.log(authors["perplexity"]) + ROUNDING
    generations = [one["generation"] for one in report["history"] if one["best_score"] <= goal]
    if not generations:
        return None
    return _summary(_our_search(args, args.spaces[0], max(args.workers), generations[0]))


def _our_search(args: Namespace, space: str, workers: int, iterations: int) -> dict[str, Any]:
    """What `longrope2-search` writes to search.json, run in processes of its own."""
    with TemporaryDirectory() as folder:
        command = f"""
            -m torch.distributed.run --standalone --nproc-per-node {workers}
            -m megatron_longrope2.tools.search_factors --load {args.load} --books {args.books}
            --target-length {args.target_length} --output {folder}/search --search-space {space}
            --population {args.population} --iterations {iterations} --samples {args.samples}
            --seed {args.seed} --held-out-samples 0 {"--bf16" if args.bf16 else ""}
        """.split()
        done = subprocess.run(
            [sys.executable, *command],
            # On one thread each: another number of threads rounds differently.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"longrope2-search failed:\n{done.stderr[-2000:]}")
        return json.loads((Path(folder) / "search/search.json").read_text())


def _full_searches(args: Namespace) -> dict[str, dict[str, Any]]:
    """Every pair scored through transformers: our evolution in each space, and "authors", theirs.

    Theirs is in the paper's space, and its parents are half the population.
    """
    from megatron_longrope2 import device

    device.install()
    import torch

    from megatron_longrope2.search.evolution import EvolutionSettings
    from megatron_longrope2.search.evolve import evolve
    from megatron_longrope2.search.job import SearchSettings
    from megatron_longrope2.search.runner import load, prepare

    torch.set_num_threads(os.cpu_count() or 1)
    scorer = _TransformersScorer(args.hf_dir, torch.bfloat16 if args.bf16 else torch.float32)
    model = None
    found = {}
    searches = {space: (space, None) for space in args.spaces} | {"authors": ("paper", args.population // 2)}
    for name, (space, parents) in searches.items():
        with TemporaryDirectory() as folder:
            settings = SearchSettings(
                load=args.load,
                books=args.books,
                output=Path(folder),
                target_length=args.target_length,
                space=space,
                samples=args.samples,
                evolution=EvolutionSettings(args.population, args.iterations, parents, seed=args.seed),
                prune=False,
                bf16=args.bf16,
            )
            model = model or load(settings)
            outcome = evolve(replace(prepare(settings, model), scorer=scorer, started=time.monotonic()))
        cost = outcome.cost
        found[name] = {
            "seconds": cost.seconds,
            "evaluations": cost.evaluations,
            "perplexity": outcome.perplexity,
        }
    return found


class _TransformersScorer:
    """The `objective.Scorer` of a Hugging Face model: full logits, one sample at a time."""

    workers = 1

    def __init__(self, folder: Path, dtype: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.rotary = self.model.model.rotary_emb

    def __call__(self, jobs: Sequence[Any]) -> list[float]:
        """Summed negative log-likelihood of each pair's scored tokens."""
        import torch

        losses = []
        for factors, sample in jobs:
            self.rotary.inv_freq = torch.tensor(factors.inv_freq("long"), dtype=torch.float32)
            self.rotary.attention_scaling = factors.attention_factor.long
            labels = sample.tokens.masked_fill(~sample.mask, -100)[None]
            with torch.no_grad():
                mean = self.model(sample.tokens[None], labels=labels, use_cache=False).loss
            losses.append(float(mean) * int(sample.mask[1:].sum()))
        return [loss if math.isfinite(loss) else math.inf for loss in losses]
