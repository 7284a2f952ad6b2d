import math
import statistics

import pytest

from megatron_longrope2.search.heldout import compare, mean_interval, paired, t_quantile


@pytest.mark.parametrize(
    ("df", "quantile"),
    [(1, 12.706), (4, 2.776), (5, 2.5706), (9, 2.2622), (30, 2.0423), (63, 1.9983), (1000, 1.9623)],
)
def test_t_quantile_is_the_tables(df: int, quantile: float) -> None:
    assert t_quantile(df) == pytest.approx(quantile, abs=3e-3)


def test_interval_of_known_numbers() -> None:
    mean, half = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776 * statistics.stdev([1, 2, 3, 4, 5]) / math.sqrt(5))
    assert mean_interval([2.0]) == (2.0, math.inf)


def test_pairing_removes_what_samples_have_in_common() -> None:
    hard = [0.1, 5.0, 0.3, 9.0, 2.0, 7.0]
    better = [value - 0.1 for value in hard]
    result = paired(better, hard)
    assert result.delta_nll == pytest.approx(-0.1)
    assert result.ci95 < 1e-9


def test_compare_reports_winner_minus_baseline() -> None:
    report = compare({"longrope2": [1.0, 1.0], "pi": [3.0, 4.0]}, "longrope2")
    assert report["samples"] == 2
    assert report["methods"]["pi"]["perplexity"] == pytest.approx(math.exp(3.5))
    assert set(report["comparisons"]) == {"pi"}
    assert report["comparisons"]["pi"]["delta_nll"] == -2.5
    assert report["comparisons"]["pi"]["ci95"] > 0
