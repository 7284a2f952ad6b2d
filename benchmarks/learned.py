"""Compare factors learned by gradient with the evolution and the closed-form methods: cost, held-out needles.

All searches run in this process, one after the other. Baselines are PI, NTK and YaRN, each with the
attention factor that does best on the search's own samples. Cost is processor time, which other programs do
not distort.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from benchmarks.measuring import Measurement
from benchmarks.searching import search_settings
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.rope import AttentionFactor, RopeFactors
from megatron_longrope2.search.heldout import compare, score_samples
from megatron_longrope2.search.run import Search, load, prepare
from megatron_longrope2.search.settings import SearchSettings

ATTENTION_FACTORS = (1.0, 1.1, 1.2, 1.3, 1.4)

# The options of `longrope2 search` that are the kind's own.
OPTIONS = {
    "paper": "",
    "paper, documents": "--objective document",
    "extended": "--search-space extended",
    "extended, attention factor 1": "--search-space extended --fix-attention-factor",
    "extended, documents": "--search-space extended --objective document",
    "learned, attention factor 1": "--algorithm gradient",
    "learned": "--algorithm gradient --learn-attention-factor",
}
Kind = Literal[*OPTIONS]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is searched and compared.

    Attributes:
        load: The Megatron checkpoint of the model.
        books: The texts in which the needles of the searches are hidden.
        held_out_books: The texts of the comparison.
        target_length: The extended window in tokens.
        searches: The searches to run.
        bf16: Run the model in bf16 instead of float32.
        seeds: The seeds; each gives a comparison of its own.
        population: The population of the evolution.
        iterations: The generations of the evolution after the first.
        steps: The steps of the gradient search.
        samples: The needles of a search, at five depths.
        held_out_samples: The needles of the comparison.
    """

    load: Path
    books: Path
    held_out_books: Path
    target_length: PositiveInt
    searches: tuple[Kind, ...] = tuple(OPTIONS)
    bf16: bool = False
    seeds: tuple[int, ...] = (0,)
    population: PositiveInt = 32
    iterations: int = 10
    steps: PositiveInt = 48
    samples: PositiveInt = 20
    held_out_samples: PositiveInt = 64

    def search(self, kind: Kind, seed: int, output: Path) -> SearchSettings:
        """The settings of a search of this kind."""
        return search_settings(
            f"""
            --load {self.load} --books {self.books} --held-out-books {self.held_out_books} --output {output}
            --target-length {self.target_length} --samples {self.samples}
            --held-out-samples {self.held_out_samples} --needle-depths 0 0.25 0.5 0.75 0.95 --seed {seed}
            --population {self.population} --iterations {self.iterations} --steps {self.steps} --no-recompute
            {OPTIONS[kind]} {"--bf16" if self.bf16 else ""}
            """
        )


def measure(settings: Settings) -> Measurement:
    """Run the searches for every seed and compare their results on held-out needles."""
    model = load(settings.search("learned", settings.seeds[0], Path("unused")))
    seeds = {str(seed): _compare(settings, seed, model) for seed in settings.seeds}
    return Measurement(ratios=_ratios(list(seeds.values())), measured={"seeds": seeds})


def _compare(settings: Settings, seed: int, model: LoadedModel) -> dict[str, Any]:
    """{`cpu_seconds`: of each search; `methods`: as `heldout.compare`; `comparisons`: of each; `factors`}."""
    seconds: dict[str, float] = {}
    methods: dict[str, RopeFactors] = {}
    for kind in settings.searches:
        with TemporaryDirectory() as folder:
            search = prepare(settings.search(kind, seed, Path(folder) / "search"), model)
            before = time.process_time()
            outcome = search.run()
            seconds[kind] = time.process_time() - before
        methods[kind] = outcome.factors
        methods |= {f"{kind}, {name}": factors for name, factors in outcome.compared.items()}
    methods |= _baselines(search)
    scores = score_samples(search.session.scorer, methods, search.held_out)
    comparisons = {kind: compare(scores, kind)["comparisons"] for kind in settings.searches}
    table = compare(scores, settings.searches[0])["methods"]
    for name, row in table.items():
        print(f"seed {seed}, {name}: {row['nll']:.4f} +- {row['ci95']:.4f}", file=sys.stderr, flush=True)
    factors = {name: value.to_dict() for name, value in methods.items()}
    return {"cpu_seconds": seconds, "methods": table, "comparisons": comparisons, "factors": factors}


def _baselines(search: Search) -> dict[str, RopeFactors]:
    """The closed-form methods, without and with their best attention factor on the search's samples."""
    found, samples = {}, search.session.samples
    for method in ("pi", "ntk", "yarn"):
        (plain,) = search.space.closed_form(method)
        options = [replace(plain, attention_factor=AttentionFactor(long=one)) for one in ATTENTION_FACTORS]
        scores = [search.session.scorer(samples, [one] * len(samples)) for one in options]
        losses = [sum(sample.total for sample in several) for several in scores]
        found[method] = plain
        found[f"{method}, best attention factor"] = options[losses.index(min(losses))]
    return found


def _ratios(seeds: list[dict[str, Any]]) -> dict[str, float]:
    """Of the sums over the seeds; below 1 is better than what it is compared with."""
    ran = seeds[0]["cpu_seconds"]
    baselines = [name for name in seeds[0]["methods"] if name.endswith("best attention factor")]

    def nll(*names: str) -> float:
        return sum(min(seed["methods"][name]["nll"] for name in names) for seed in seeds)

    def cost(kind: str) -> float:
        return sum(seed["cpu_seconds"][kind] for seed in seeds)

    ratios = {}
    for kind, suffix in (("learned", ""), ("learned, attention factor 1", "_attention_factor_1")):
        if kind not in ran:
            continue
        ratios[f"nll_vs_best_baseline{suffix}"] = nll(kind) / nll(*baselines)
        for evolution, name in (("paper", "evolution"), ("extended", "extended_evolution")):
            if evolution in ran:
                ratios[f"nll_vs_{name}{suffix}"] = nll(kind) / nll(evolution)
                ratios[f"cost_vs_{name}{suffix}"] = cost(kind) / cost(evolution)
    for space, suffix in (("paper", ""), ("extended", "_extended")):
        if {space, f"{space}, documents"} <= set(ran):
            ratios[f"nll_needles_vs_documents{suffix}"] = nll(space) / nll(f"{space}, documents")
    return ratios
