"""The benchmark of one candidate's evaluation, on a tiny model."""

import math
from pathlib import Path

import pytest

from tests.benchmarks.test_benchmarks import ROOT, run


def test_ratios(tmp_path: Path) -> None:
    base = ROOT / "examples/tiny_cpu/base"
    sizes = ("--model", base, "--length", 1024, "--repeats", 1, "--candidates", 4, "--samples", 2)
    result = run("scoring", tmp_path / "scoring.json", *sizes)
    ratios, measured = result["ratios"], result["measured"]
    assert all(math.isfinite(value) and value > 0 for value in ratios.values())
    assert {"evaluation_vs_forward_1k", "evaluation_vs_forward_whole_1k"} < set(ratios)
    # The best of four candidates is known after its two samples and one of each other at least.
    assert 5 / 8 <= ratios["evaluations_with_pruning"] <= 1
    assert measured["race"]["evaluations"] == ratios["evaluations_with_pruning"] * 8
    seconds = min(measured["seconds"]["evaluation"])
    assert measured["seconds_per_layer"] == pytest.approx(seconds / 4)
