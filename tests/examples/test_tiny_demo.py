"""`make demo`, every stage of it, on next to nothing."""

import json
from pathlib import Path

import pytest

from examples.tiny_cpu.run import main

SCORES = {"needle_ppl_target", "needle_accuracy_target", "needle_accuracy_original", "short_ppl"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, forked_stages: None) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("demo") / "run"
    main(output=folder, quick=True)
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
def test_a_finished_run_is_not_run_again(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / "measured/none/needle.json").stat().st_mtime_ns
    main(output=demo, quick=True)
    assert "search: done before" in capsys.readouterr().out
    assert (demo / "measured/none/needle.json").stat().st_mtime_ns == before
