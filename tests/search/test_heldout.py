import math

import pytest

from megatron_longrope2.search.heldout import compare


def test_compare_reports_winner_minus_baseline() -> None:
    report = compare({"longrope2": [1.0, 1.0], "pi": [3.0, 4.0]}, "longrope2")
    assert report["samples"] == 2
    assert report["methods"]["pi"]["perplexity"] == pytest.approx(math.exp(3.5))
    assert set(report["comparisons"]) == {"pi"}
    assert report["comparisons"]["pi"]["delta_nll"] == -2.5
    assert report["comparisons"]["pi"]["ci95"] > 0
