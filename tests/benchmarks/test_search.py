"""The search benchmark on a toy model: all searches run, and ours find the same as a full evaluation."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from megatron_longrope2.benchmarks import search
from tests.search.tiny_model import TARGET, write_books, write_model


def test_all_searches_find_the_same(tmp_path: Path) -> None:
    books = write_books(tmp_path / "books")
    write_model(tmp_path, books)
    parser = ArgumentParser()
    search.add_arguments(parser)
    found = search.measure(
        parser.parse_args(
            [
                *("--load", str(tmp_path / "megatron"), "--hf-dir", str(tmp_path / "hf")),
                *("--books", str(books), "--target-length", str(TARGET), "--spaces", "paper"),
                *("--population", "6", "--iterations", "1", "--samples", "3", "--workers", "2"),
            ]
        )
    )
    ours, full = found.measured["ours"]["paper"][2], found.measured["full"]["paper"]
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
