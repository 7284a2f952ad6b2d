"""The search benchmark on a toy model: all searches run, and ours find the same as a full evaluation."""

from functools import partial
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig

from benchmarks import search
from benchmarks.search import Settings, measure
from megatron_longrope2.search.settings import EvolutionSettings, ObjectiveSettings
from tests import processes  # noqa: F401 - the fork server's preload
from tests.search.tiny_model import TARGET, write_books, write_model


def test_all_searches_find_the_same(
    tmp_path: Path,
    megatron: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Workers are forked from a process that has imported Megatron, like those of `tests.processes`.
    monkeypatch.setattr(search, "LaunchConfig", partial(LaunchConfig, start_method="forkserver"))
    books = write_books(tmp_path / "books")
    write_model(tmp_path, books)
    found = measure(
        settings=Settings(
            load=tmp_path / "megatron",
            hf_dir=tmp_path / "hf",
            books=books,
            target_length=TARGET,
            output=tmp_path / "search.json",
            objective=ObjectiveSettings(samples=3),
            evolution=EvolutionSettings(population=6, iterations=1),
            workers=(2,),
        )
    )
    ours, full = found.measured["ours"][2], found.measured["full"]
    assert full["evaluations"] == (6 + 3) * 3
    assert ours["evaluations"] + ours["pruned"] == (6 + 3) * 3
    assert found.ratios["perplexity_vs_full_evaluation"] == pytest.approx(1, rel=1e-5)
    seconds = full["seconds"] / ours["seconds"]
    assert found.ratios["speedup_vs_full_evaluation"] == pytest.approx(seconds)
    assert found.ratios["speedup_of_pruning"] == (6 + 3) * 3 / ours["evaluations"]
    authors, as_good = found.measured["authors"], found.measured["as_good_as_authors"]
    assert authors["evaluations"] == (6 + 3) * 3
    assert as_good["generations"] <= 2
    assert as_good["perplexity"] <= authors["perplexity"] * (1 + 1e-5)
    seconds = authors["seconds"] / as_good["seconds"]
    assert found.ratios["speedup_vs_authors_search"] == pytest.approx(seconds)
