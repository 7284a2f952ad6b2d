"""The comparison of learned factors: its searches, and its ratios."""

from pathlib import Path

import pytest

from benchmarks.learned import SEARCHES, Settings, ratios

SETTINGS = Settings(load=Path("base"), books=Path("books"), target_length=2048, output=Path("learned.json"))


def test_ratios_are_against_the_best_baseline_and_the_first_search() -> None:
    baselines = {"pi, best attention factor": 0.6, "yarn, best attention factor": 2.0, "yarn": 0.01}
    nll = {"paper": 3.0, "extended": 0.5, "learned": 0.3, **baselines}
    assert ratios(nll, {"paper": 40.0, "extended": 20.0, "learned": 10.0}) == {
        "nll_vs_best_baseline, paper": 3.0 / 0.6,
        "nll_vs_best_baseline, extended": 0.5 / 0.6,
        "nll_vs_best_baseline, learned": 0.3 / 0.6,
        "nll_vs_paper, extended": 0.5 / 3.0,
        "nll_vs_paper, learned": 0.3 / 3.0,
        "cost_vs_paper, extended": 20 / 40,
        "cost_vs_paper, learned": 10 / 40,
    }


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_is_what_its_name_says(search: str) -> None:
    settings = SETTINGS.of(search, Path("other"))
    assert settings.output == Path("other")
    assert (settings.algorithm == "gradient") == ("learned" in search)
    assert (settings.space.search_space == "extended") == ("extended" in search)
    assert (settings.objective.objective == "document") == ("documents" in search)
    if "attention factor 1" in search:
        assert settings.space.fix_attention_factor or not settings.gradient.learn_attention_factor
