"""Time the factor search against scoring every candidate in full through transformers, one by one.

Ours is `longrope2 search` with its pruning, logits of the scored tokens only, and a process of one thread per
worker. The other evaluates every sample of every candidate with `LlamaForCausalLM(input_ids, labels)`, full
logits and all cores, as the authors' script does: once in our evolution (`speedup_vs_full_evaluation`), and
once in theirs, the paper's space with half the population as parents, against ours until it is as good
(`speedup_vs_authors_search`). Times are seconds on the clock without loading, which is what a user waits for:
run it on an idle machine.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cyclopts.types import PositiveInt
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import AutoModelForCausalLM

from megatron_longrope2 import device

device.install()

from benchmarks.measuring import Measurement
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.scoring.hugging_face import HFScorer
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import TokenScores
from megatron_longrope2.search.evolution import Evolution
from megatron_longrope2.search.run import load, prepare, run_search
from megatron_longrope2.search.settings import SearchSettings

ROUNDING = 1e-5  # nats by which the same factors differ between the two implementations, in float32


@dataclass(frozen=True, kw_only=True)
class Settings(SearchSettings):
    """The options of `longrope2 search` for all searches, and what is compared.

    Attributes:
        output: The JSON file to write. Tables in Markdown are written beside it, with the suffix .md.
        hf_dir: The Hugging Face folder of the same model.
        workers: The numbers of processes of our search; by default one, and one per core.
    """

    output: Path
    hf_dir: Path
    workers: tuple[PositiveInt, ...] = (1, os.cpu_count() or 1)


def measure(*, settings: Settings) -> Measurement:
    """Run our search with each number of workers, the same one through transformers, and the authors'.

    Raises:
        RuntimeError: the number of workers changed the search's result.
    """
    ours = {workers: _our_search(settings, workers) for workers in settings.workers}
    first, costs = next(iter(ours.values())), [one["cost"] for one in ours.values()]
    if any(one["factors"] != first["factors"] for one in ours.values()):
        raise RuntimeError("the number of workers changed the search's result")
    full, authors = _full_searches(settings)
    ratios = {
        "speedup_vs_full_evaluation": full["seconds"] / min(cost["seconds"] for cost in costs),
        "speedup_of_workers": costs[0]["seconds"] / costs[-1]["seconds"],
        "speedup_of_pruning": full["evaluations"] / costs[0]["evaluations"],
        "perplexity_vs_full_evaluation": first["perplexity"] / full["perplexity"],
    }
    measured = {
        "ours": {workers: _summary(found) for workers, found in ours.items()},
        "full": full,
        "authors": authors,
    }
    goal = math.log(authors["perplexity"]) + ROUNDING
    as_good = [one["generation"] for one in first["history"] if one["best_score"] <= goal]
    if as_good:
        evolution = replace(settings.evolution, iterations=as_good[0])
        found = _summary(_our_search(replace(settings, evolution=evolution), max(settings.workers)))
        ratios["speedup_vs_authors_search"] = authors["seconds"] / found["seconds"]
        ratios["perplexity_vs_authors_search"] = found["perplexity"] / authors["perplexity"]
        measured["as_good_as_authors"] = found
    return Measurement(settings, ratios, measured)


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    cost = {name: report["cost"][name] for name in ("seconds", "evaluations", "pruned")}
    return cost | {"perplexity": report["perplexity"], "generations": len(report["history"])}


def _our_search(settings: Settings, workers: int) -> dict[str, Any]:
    """What `longrope2 search` writes to search.json, run by so many processes of its own."""
    config = LaunchConfig(1, 1, workers, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    with TemporaryDirectory() as folder:
        objective = replace(settings.objective, held_out_samples=0)
        return elastic_launch(config, _search)(
            replace(settings, output=Path(folder) / "search", objective=objective)
        )[0]


def _search(settings: SearchSettings) -> dict[str, Any]:
    torch.set_num_threads(1)  # another number of threads rounds differently
    return run_search(settings)


def _full_searches(settings: Settings) -> list[dict[str, Any]]:
    """Every pair scored through transformers: our evolution, and the authors'.

    Theirs is in the paper's space, and its parents are half the population.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    dtype = torch.bfloat16 if settings.layout.bf16 else torch.float32
    scorer = FullScorer(AutoModelForCausalLM.from_pretrained(settings.hf_dir, dtype=dtype))
    model = load(settings)
    evolution = replace(settings.evolution, parents=max(1, settings.evolution.population // 2))
    space = replace(settings.space, search_space="paper")
    authors = replace(settings, evolution=evolution, space=space)
    return [_full_search(one, model, scorer) for one in (settings, authors)]


def _full_search(settings: Settings, model: LoadedModel, scorer: HFScorer) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        search = prepare(replace(settings, output=Path(folder)), model)
        search.session.scorer = scorer
        outcome = search.session.run(Evolution(search.session, search.space, prune=False))
    cost = {name: getattr(outcome.cost, name) for name in ("seconds", "evaluations")}
    return cost | {"perplexity": outcome.perplexity}


class FullScorer(HFScorer):
    """The `Scorer` of a transformers model that computes all logits, and leaves the loss to transformers."""

    def _score(self, sample: Sample) -> TokenScores:
        """Each scored token gets the mean of its sample."""
        labels = sample.tokens.masked_fill(~sample.mask, -100)[None]
        mean = self.model(sample.tokens[None], labels=labels, use_cache=False).loss
        return TokenScores(mean.float().expand(sample.scored), mean.isnan().expand(sample.scored))
