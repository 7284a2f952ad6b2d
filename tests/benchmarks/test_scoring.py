"""The benchmark of one candidate's evaluation, on a tiny model."""

import math

import pytest

from benchmarks.scoring import Settings, measure


def test_ratios(megatron: None) -> None:  # noqa: ARG001
    found = measure(Settings(model="examples/tiny_cpu/base", length=1024, repeats=1))
    assert set(found.ratios) == {"evaluation_vs_forward_1k", "evaluation_vs_forward_whole_1k"}
    assert all(math.isfinite(value) and value > 0 for value in found.ratios.values())
    seconds = min(found.measured["seconds"]["evaluation"])
    assert found.measured["seconds_per_layer"] == pytest.approx(seconds / 4)
