"""`make demo`, every stage of it, on next to nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCORES = {"needle_ppl_target", "needle_accuracy_target", "needle_accuracy_original", "short_ppl"}


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/tiny_cpu/run.py", "--quick", "--output", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    finished = run(folder)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-5000:]
    return folder


@pytest.mark.slow
def test_the_report_holds_what_it_promises(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    assert report["original_length"] == 256
    assert report["target_length"] == 512
    assert report["theoretical_critical_dim"] == 13
    assert 1 <= report["critical_dim"] <= 13
    assert set(report["methods"]) >= {"none", "pi", "ntk", "yarn", "longrope2"}
    assert set(report["trained"]) >= {"longrope2", "learned", "single_window", "short_only"}
    for stage in report["learned_minus_longrope2"].values():
        assert all(difference["ci95"] > 0 for difference in stage.values())
    for row in [report["base"], *report["methods"].values(), *report["trained"].values()]:
        assert set(row) >= SCORES
    assert set(report["comparisons"]) >= {"pi", "ntk", "yarn"}
    for row in report["comparisons"].values():
        assert set(row) >= {"delta_nll", "ci95"}
    assert all(stage["seconds"] >= 0 for stage in report["stages"])
    # Before training every method keeps the original RoPE, and so the model, in the short window.
    assert len({row["short_ppl"] for row in report["methods"].values()}) == 1
    # A few steps move it a little.
    assert report["short_retention"] == pytest.approx(1, abs=0.1)
    assert report["short_retention"] != 1


@pytest.mark.slow
def test_the_export_equals_the_megatron_model(demo: Path) -> None:
    export = json.loads((demo / "report.json").read_text())["hf_export"]
    assert Path(export["path"], "config.json").exists()
    assert 0 <= export["short"] < 1e-4
    assert 0 <= export["long"] < 1e-4


@pytest.mark.slow
def test_pictures_and_text_are_there(demo: Path) -> None:
    for name in ("factors.png", "needles.png", "short_long.png"):
        assert (demo / name).read_bytes().startswith(b"\x89PNG")
    text = (demo / "report.md").read_text()
    assert "| LongRoPE2 " in text
    assert "nan" not in text


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(demo: Path) -> None:
    before = os.stat(demo / "measured/none/needle.json").st_mtime_ns
    finished = run(demo)
    assert finished.returncode == 0
    assert "search: done before" in finished.stdout
    assert os.stat(demo / "measured/none/needle.json").st_mtime_ns == before


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"target_length": 1024}')
    finished = run(tmp_path)
    assert finished.returncode == 2
    assert finished.stderr == (
        f"error: {tmp_path}: made with other settings; remove it or choose another --output\n"
    )
