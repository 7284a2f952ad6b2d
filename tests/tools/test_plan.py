"""The planner's command line."""

from pathlib import Path

import pytest

from megatron_longrope2.files import read_json
from tests.processes import ROOT, longrope2


def test_table_recommendation_and_json(tmp_path: Path) -> None:
    output = ("--output", tmp_path / "plan.json")
    finished = longrope2("plan", "--model", "phi3-mini", "--gpus", 16, *output, "--top", 3, "--formula-only")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0].split()[:4] == ["TP", "CP", "PP", "DP"]
    assert len(lines[: lines.index("")]) == 1 + 3
    written = read_json(tmp_path / "plan.json")
    assert f"recommended: {written['layouts'][0]['arguments']}" in lines
    assert written["settings"]["gpus"] == 16
    assert "not calibrated" in finished.stdout


def test_the_recommendation_is_rehearsed(tmp_path: Path) -> None:
    output = ("--output", tmp_path / "plan.json")
    finished = longrope2(
        "plan", "--model", ROOT / "examples/tiny_cpu/base", "--length", 512, "--gpus", 2, *output
    )
    assert finished.returncode == 0, finished.stderr
    written = read_json(tmp_path / "plan.json")
    (check,) = written["rehearsals"]
    best = written["layouts"][0]
    assert {name: best[name] for name in check["layout"]} == check["layout"]
    # The row has the formula's weights and the rehearsal's activations.
    assert best["memory_bytes"]["total"] == pytest.approx(check["rehearsed"])
    assert "GiB rehearsed, " in finished.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", 1), "error: --memory: no layout of 1 GPUs fits into 90% of 80 GiB"),
        (("--memory", 0), 'error: Invalid value "0.0" for --memory. Must be > 0.'),
        (("--long-share", 1.5), 'error: Invalid value "1.5" for --long-share. Must be <= 1.'),
    ],
)
def test_bad_input_is_one_line(options: tuple[object, ...], message: str) -> None:
    finished = longrope2("plan", "--model", "llama3-70b", *options)
    assert finished.returncode == 2
    assert finished.stderr.startswith(message)
    assert finished.stderr.count("\n") == 1
