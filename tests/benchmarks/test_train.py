"""The benchmark of a small model's step."""

from pathlib import Path

import pytest

from benchmarks.train import Settings, measure


def test_both_models_do_the_same_work(megatron: None) -> None:  # noqa: ARG001
    sizes = {"length": 64, "original_length": 16, "num_layers": 1, "hidden_size": 64}
    found = measure(settings=Settings(output=Path("unused"), **sizes, repeats=1))
    kinds = ("", "_short", "_long", "_mixed")
    assert set(found.ratios) == {f"step_time_vs_upstream{kind}" for kind in kinds}
    assert all(ratio > 0 for ratio in found.ratios.values())
    # Equal weights, and plain RoPE in the short window.
    losses = found.measured["losses"]["short"]
    assert losses["ours"] == pytest.approx(losses["upstream"], rel=1e-6)
