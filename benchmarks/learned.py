"""Compare factors learned by gradient with the evolution and the closed-form methods: cost, held-out needles.

All searches run in this process, one after the other. Baselines are PI, NTK and YaRN, each with the
attention factor that does best on the search's own samples. Cost is processor time, which other programs do
not distort. Ratios compare every search with the best baseline and with the first search.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from megatron_longrope2 import device

device.install()

from benchmarks.measuring import Measurement
from megatron_longrope2.rope import AttentionFactor, RopeFactors
from megatron_longrope2.search.heldout import compare, score_samples
from megatron_longrope2.search.run import Search, load, prepare
from megatron_longrope2.search.settings import SearchSettings

ATTENTION_FACTORS = (1.0, 1.1, 1.2, 1.3, 1.4)

# By name, the settings in which a search differs from the others, section by section.
SEARCHES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    "paper, documents": {"objective": {"objective": "document"}},
    "extended": {"space": {"search_space": "extended"}},
    "extended, attention factor 1": {"space": {"search_space": "extended", "fix_attention_factor": True}},
    "extended, documents": {"space": {"search_space": "extended"}, "objective": {"objective": "document"}},
    "learned, attention factor 1": {},
    "learned": {"gradient": {"learn_attention_factor": True}},
}


@dataclass(frozen=True, kw_only=True)
class Settings(SearchSettings):
    """The options of `longrope2 search` for all searches, and what is compared.

    Attributes:
        output: The JSON file to write. Tables in Markdown are written beside it, with the suffix .md.
        searches: The searches to run.
    """

    output: Path
    searches: tuple[Literal[*SEARCHES], ...] = tuple(SEARCHES)

    def of(self, search: str, output: Path) -> SearchSettings:
        """The settings of one of the searches."""
        sections = {
            name: replace(getattr(self, name), **changes) for name, changes in SEARCHES[search].items()
        }
        algorithm = "gradient" if search.startswith("learned") else "evolution"
        return replace(self, output=output, algorithm=algorithm, **sections)


def measure(*, settings: Settings) -> Measurement:
    """Run the searches and compare their results on held-out needles."""
    model = load(settings.of("learned", settings.output))
    seconds: dict[str, float] = {}
    methods: dict[str, RopeFactors] = {}
    for kind in settings.searches:
        with TemporaryDirectory() as folder:
            search = prepare(settings.of(kind, Path(folder)), model)
            before = time.process_time()
            outcome = search.session.run(search.strategy)
            seconds[kind] = time.process_time() - before
        methods[kind] = outcome.factors
        methods |= {f"{kind}, {name}": factors for name, factors in outcome.compared.items()}
    methods |= _baselines(search)
    scores = score_samples(search.session.scorer, methods, search.held_out)
    compared = {kind: compare(scores, kind) for kind in settings.searches}
    found = compared[settings.searches[0]]["methods"]
    return Measurement(
        settings,
        ratios=ratios({name: row["nll"] for name, row in found.items()}, seconds),
        measured={
            "cpu_seconds": seconds,
            "table": [{"factors": name, **row} for name, row in found.items()],
            "comparisons": {kind: one["comparisons"] for kind, one in compared.items()},
            "factors": {name: value.to_dict() for name, value in methods.items()},
        },
    )


def _baselines(search: Search) -> dict[str, RopeFactors]:
    """The closed-form methods, without and with their best attention factor on the search's samples."""
    found = {}
    for method in ("pi", "ntk", "yarn"):
        (plain,) = search.space.closed_form(method)
        tried = {
            str(one): replace(plain, attention_factor=AttentionFactor(long=one)) for one in ATTENTION_FACTORS
        }
        losses = score_samples(search.session.scorer, tried, search.session.samples)
        best = min(losses, key=lambda one: sum(losses[one]))
        found |= {method: plain, f"{method}, best attention factor": tried[best]}
    return found


def ratios(nll: dict[str, float], seconds: dict[str, float]) -> dict[str, float]:
    """Below 1 a search is better, or cheaper, than what it is compared with.

    Args:
        nll: of each method on the held-out needles.
        seconds: of each search; the others are compared with the first.
    """
    baseline = min(value for name, value in nll.items() if name.endswith("best attention factor"))
    first = next(iter(seconds))
    found = {f"nll_vs_best_baseline, {kind}": nll[kind] / baseline for kind in seconds}
    found |= {f"nll_vs_{first}, {kind}": nll[kind] / nll[first] for kind in seconds if kind != first}
    return found | {
        f"cost_vs_{first}, {kind}": seconds[kind] / seconds[first] for kind in seconds if kind != first
    }
