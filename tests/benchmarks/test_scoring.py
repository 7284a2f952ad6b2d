"""The benchmark of one candidate's evaluation, on a tiny model."""

from pathlib import Path

import pytest

from benchmarks.scoring import Settings, measure


def test_ratios(megatron: None) -> None:  # noqa: ARG001
    settings = Settings(output=Path("unused"), model="examples/tiny_cpu/base", length=1024, repeats=1)
    found = measure(settings=settings)
    seconds = found.measured["seconds"]
    assert found.ratios == {"evaluation_vs_forward_1k": seconds["evaluation"] / seconds["forward"]}
    assert found.measured["seconds_per_layer"] == pytest.approx(seconds["evaluation"] / 4)
