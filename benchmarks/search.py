"""Time the factor search against scoring every candidate in full through transformers, one by one.

Ours is `longrope2 search` with its pruning, logits of the scored tokens only, and a process of one thread per
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cyclopts import Parameter
from cyclopts.types import PositiveInt
from transformers import AutoModelForCausalLM

from benchmarks.measuring import Measurement
from benchmarks.searching import search_settings
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import TokenScores
from megatron_longrope2.search.evolution import Evolution
from megatron_longrope2.search.run import load, prepare
from megatron_longrope2.search.space import SpaceKind

ROUNDING = 1e-5  # nats by which the same factors differ between the two implementations, in float32


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is searched.

    Attributes:
        load: The Megatron checkpoint of the model.
        hf_dir: The Hugging Face folder of the same model.
        books: The texts in which the needles are hidden.
        target_length: The extended window in tokens.
        search_space: The search space.
        population: The candidates of the first generation.
        iterations: The generations after the first.
        samples: The needles of a candidate's score.
        seed: The seed of the needles and of the evolution.
        workers: The numbers of processes of our search; by default one, and one per core.
        bf16: Run both in bf16 instead of float32.
    """

    load: Path
    hf_dir: Path
    books: Path
    target_length: PositiveInt = 2048
    search_space: SpaceKind = "extended"
    population: PositiveInt = 32
    iterations: int = 10
    samples: PositiveInt = 10
    seed: int = 0
    workers: tuple[PositiveInt, ...] = (1, os.cpu_count() or 1)
    bf16: bool = False

    def options(self, space: SpaceKind, iterations: int, output: Path) -> str:
        """The options of `longrope2 search` for our search."""
        return f"""
            --load {self.load} --books {self.books} --target-length {self.target_length} --output {output}
            --search-space {space} --population {self.population} --iterations {iterations}
            --samples {self.samples} --seed {self.seed} --held-out-samples 0 {"--bf16" if self.bf16 else ""}
        """


def measure(settings: Settings) -> Measurement:
    """Run our search with each number of workers, the same one through transformers, and the authors'.

    Raises:
        RuntimeError: a search failed, or the number of workers changed its result.
    """
    ours = {workers: _our_search(settings, workers, settings.iterations) for workers in settings.workers}
    if len({(one["perplexity"], *one["factors"]["long_factor"]) for one in ours.values()}) > 1:
        raise RuntimeError("the number of workers changed the search's result")
    full, authors = _full_searches(settings)
    first, costs = next(iter(ours.values())), [one["cost"] for one in ours.values()]
    ratios = {
        "speedup_vs_full_evaluation": full["seconds"] / min(cost["seconds"] for cost in costs),
        "speedup_of_workers": costs[0]["seconds"] / costs[-1]["seconds"],
        "speedup_of_pruning": full["evaluations"] / costs[0]["evaluations"],
        "perplexity_vs_full_evaluation": first["perplexity"] / full["perplexity"],
    }
    as_good = _as_good(settings, first, authors)
    if as_good:
        ratios["speedup_vs_authors_search"] = authors["seconds"] / as_good["seconds"]
        ratios["perplexity_vs_authors_search"] = as_good["perplexity"] / authors["perplexity"]
    return Measurement(
        ratios=ratios,
        measured={
            "ours": {workers: _summary(found) for workers, found in ours.items()},
            "full": full,
            "authors": authors,
            "as_good_as_authors": as_good,
        },
    )


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    cost = {name: report["cost"][name] for name in ("seconds", "evaluations", "pruned")}
    return cost | {"perplexity": report["perplexity"], "generations": len(report["history"])}


def _as_good(settings: Settings, report: dict[str, Any], authors: dict[str, Any]) -> dict[str, Any] | None:
    """Our search, run up to the first generation that is as good as the authors' result; None if none is."""
    goal = math.log(authors["perplexity"]) + ROUNDING
    generations = [one["generation"] for one in report["history"] if one["best_score"] <= goal]
    return _summary(_our_search(settings, max(settings.workers), generations[0])) if generations else None


def _our_search(settings: Settings, workers: int, iterations: int) -> dict[str, Any]:
    """What `longrope2 search` writes to search.json, run in processes of its own."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "search"
        launcher = f"-m torch.distributed.run --standalone --nproc-per-node {workers} -m megatron_longrope2"
        options = settings.options(settings.search_space, iterations, output)
        done = subprocess.run(
            [sys.executable, *launcher.split(), "search", *options.split()],
            # On one thread each: another number of threads rounds differently.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"longrope2 search failed:\n{done.stderr[-2000:]}")
        return json.loads((output / "search.json").read_text())


def _full_searches(settings: Settings) -> list[dict[str, Any]]:
    """Every pair scored through transformers: our evolution, and the authors'.

    Theirs is in the paper's space, and its parents are half the population.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    scorer = FullScorer(settings.hf_dir, torch.bfloat16 if settings.bf16 else torch.float32)
    model, found = None, []
    for space, more in (
        (settings.search_space, ""),
        ("paper", f"--parents {max(1, settings.population // 2)}"),
    ):
        with TemporaryDirectory() as folder:
            options = settings.options(space, settings.iterations, Path(folder))
            full = search_settings(f"{options} {more}")
            model = model or load(full)
            search = prepare(full, model)
            search.session.scorer = scorer
            outcome = search.session.run(Evolution(search.session, search.space, prune=False))
        cost = {name: getattr(outcome.cost, name) for name in ("seconds", "evaluations")}
        found.append({**cost, "perplexity": outcome.perplexity})
    return found


class FullScorer:
    """The `Scorer` of a Hugging Face model with full logits, one sample at a time."""

    workers = 1

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.rotary = self.model.model.rotary_emb

    @torch.no_grad()
    def __call__(
        self, samples: Sequence[Sample], factors: Sequence[RopeFactors], **_: Any
    ) -> list[TokenScores]:
        """Each scored token gets the mean of its sample."""
        scores = []
        for sample, one in zip(samples, factors, strict=True):
            self.rotary.inv_freq = torch.tensor(one.inv_freq("long"), dtype=torch.float32)
            self.rotary.attention_scaling = one.attention_factor.long
            labels = sample.tokens.masked_fill(~sample.mask, -100)[None]
            mean = self.model(sample.tokens[None], labels=labels, use_cache=False).loss
            scores.append(TokenScores(mean.float().expand(sample.scored), mean.isnan().expand(sample.scored)))
        return scores
