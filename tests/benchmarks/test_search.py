"""The search benchmark on a toy model: both searches run, and find the same."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from megatron_longrope2.benchmarks import search
from tests.search.tiny_model import TARGET, write_books, write_model


def test_both_searches_find_the_same(tmp_path: Path) -> None:
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
    measured = found.measured["paper"]
    assert measured["full"]["evaluations"] == (6 + 3) * 3
    ours = measured["ours"]["2"]
    assert ours["evaluations"] + ours["pruned"] == (6 + 3) * 3
    assert found.ratios["perplexity_vs_full_evaluation"] == pytest.approx(1, rel=1e-5)
    seconds = measured["full"]["seconds"] / ours["seconds"]
    assert found.ratios["speedup_vs_full_evaluation"] == pytest.approx(seconds)
    assert found.ratios["speedup_of_pruning"] == (6 + 3) * 3 / ours["evaluations"]
