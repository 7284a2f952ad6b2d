"""The ratios of the comparison of learned factors."""

from benchmarks.learned import _ratios

LEARNED, FIXED = "learned", "learned, attention factor 1"


def _seed(learned: float, fixed: float, paper: float, pi: float, yarn: float, seconds: float) -> dict:
    nll = {LEARNED: learned, FIXED: fixed, "paper": paper}
    nll |= {"pi, best attention factor": pi, "yarn, best attention factor": yarn, "yarn": 0.01}
    return {
        "methods": {name: {"nll": value} for name, value in nll.items()},
        "cpu_seconds": {LEARNED: seconds, FIXED: 2 * seconds, "paper": 40.0},
    }


def test_ratios_are_of_sums_and_against_each_seeds_best_baseline() -> None:
    seeds = [_seed(0.1, 0.2, 3.0, 5.0, 1.0, 10.0), _seed(0.3, 0.4, 1.0, 0.6, 2.0, 30.0)]
    ratios = _ratios(seeds)
    assert ratios["nll_vs_evolution"] == (0.1 + 0.3) / (3.0 + 1.0)
    assert ratios["nll_vs_best_baseline"] == (0.1 + 0.3) / (1.0 + 0.6)
    assert ratios["nll_vs_best_baseline_attention_factor_1"] == (0.2 + 0.4) / (1.0 + 0.6)
    assert ratios["cost_vs_evolution"] == (10 + 30) / 80
    assert ratios["cost_vs_evolution_attention_factor_1"] == (20 + 60) / 80
    assert not any("extended" in name for name in ratios)
