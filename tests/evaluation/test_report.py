"""What a report concludes from records that are known."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.needle_grid import NeedleGrid, NeedleScore
from megatron_longrope2.evaluation.perplexity import Perplexity
from megatron_longrope2.evaluation.report import build_report, effective_length, write_report
from megatron_longrope2.evaluation.ruler import summarize
from megatron_longrope2.evaluation.settings import ReportSettings
from megatron_longrope2.files import read_json


def record(result: dict[str, Any], beyond: tuple[int, ...] = (), **settings: Any) -> dict[str, Any]:
    return {
        "checkpoint": "somewhere",
        "method": "longrope2",
        "original_length": 64,
        "target_length": 256,
        "beyond_window": list(beyond),
        "settings": settings,
        "result": result,
    }


def needles(right: dict[int, int], nll: float, **settings: Any) -> dict[str, Any]:
    """Ten samples a length, so many of them right."""
    scores = [
        NeedleScore(length, 0.0, index, nll + index, 7, 7 if index < count else 0)
        for length, count in right.items()
        for index in range(10)
    ]
    return record(NeedleGrid(tuple(scores)).to_dict(), **settings)


def harness(**scores: float) -> dict[str, Any]:
    return record({"tasks": {name: {"main": score, "stderr": 0.5} for name, score in scores.items()}})


def perplexity(short: float, long: float, **settings: Any) -> dict[str, Any]:
    """Two texts in the original window, one nat a token apart, and one position bucket of long ones."""
    measured = Perplexity((100 * math.log(short) - 50, 100 * math.log(short) + 50), (100, 100))
    bucket = {"start": 64, "end": 256, **Perplexity((math.log(long),) * 2, (1, 1)).to_dict()}
    return record({"short": measured.to_dict(), "positions": [bucket], "sliding": []}, **settings)


CHECKPOINTS: dict[str, dict[str, dict[str, Any]]] = {
    "before": {
        "needle": needles({64: 10, 256: 0}, nll=70.0, seed=1),
        "lm_eval": harness(mmlu=60.0, gsm8k=40.0),
        "perplexity": perplexity(5.0, 20.0),
    },
    "after": {
        "needle": needles({64: 10, 128: 9, 256: 9}, nll=7.0, seed=1),
        "lm_eval": harness(mmlu=59.0, gsm8k=39.0),
        "perplexity": perplexity(5.1, 10.0),
        "ruler": record(summarize({"ruler_vt": {"64": [1.0], "128": [0.9], "256": [0.8]}})),
    },
    "other seed": {"needle": needles({64: 10}, nll=7.0, seed=2)},
}


def test_numbers() -> None:
    report = build_report(CHECKPOINTS, ReportSettings(baseline="before"))
    kept = report["retention"]["after"]
    assert (kept["short_average"], kept["short_perplexity"]) == pytest.approx((98 / 100, 5.0 / 5.1))
    # The texts differ, their differences do not: pairing leaves no doubt.
    assert kept["short_perplexity_ci95"] == pytest.approx([5.0 / 5.1] * 2)
    assert report["needle"]["before"]["effective_length"] == 64
    assert report["needle"]["after"]["effective_length"] == 256
    assert report["ruler"]["after"]["effective_length"] == 128
    assert report["comparisons"] == {
        "after": {
            "64": {"mean": pytest.approx(-9.0), "ci95": pytest.approx(0.0), "count": 10},
            "256": {"mean": pytest.approx(-9.0), "ci95": pytest.approx(0.0), "count": 10},
        }
    }


def test_other_tasks_are_no_retention() -> None:
    checkpoints = {"a": {"lm_eval": harness(mmlu=60.0)}, "b": {"lm_eval": harness(gsm8k=50.0)}}
    assert "b" not in build_report(checkpoints, ReportSettings(baseline="a"))["retention"]


def test_effective_length_stops_at_the_first_failure() -> None:
    assert effective_length({"64": 1.0, "256": 1.0, "128": 0.5}, 0.9) == 64
    assert effective_length({"64": 0.5}, 0.9) is None


def test_files(tmp_path: Path) -> None:
    checkpoints = {
        **CHECKPOINTS,
        "plain": {"needle": record(needles({512: 1}, 7.0)["result"], beyond=(512,))},
    }
    paths = write_report(build_report(checkpoints, ReportSettings(baseline="before")), checkpoints, tmp_path)
    assert {path.name for path in paths} == {
        *("report.json", "report.md", "needles.png", "needle_accuracy.png", "needle_perplexity.png"),
        *("ruler.png", "perplexity.png", "short_long.png"),
    }
    assert read_json(tmp_path / "report.json")["baseline"] == "before"
    text = re.sub(" +", " ", (tmp_path / "report.md").read_text())
    assert "## RULER, average (%)\n\n| checkpoint | average of " in text
    assert "| 1 of the 13 tasks |" in text
    assert "| after | longrope2 | 64 | 256 | 128 | 256 | 98.0% | 98.0% (98.0%-98.0%) |" in text
    assert "0.10 (0.02-0.40)*" in text
    assert "| after | **-9.000 ± 0.000** | **-9.000 ± 0.000** |" in text
    assert "| after | 59.0 ± 1.0 | 39.0 ± 1.0 | 49.0 |" in text
    assert "| after | 5.10 (" in text
    assert "\\* beyond the checkpoint's window" in text


def test_refusals() -> None:
    with pytest.raises(InputError, match="--baseline: 'nobody' is not one of before, after"):
        build_report(CHECKPOINTS, ReportSettings(baseline="nobody"))
