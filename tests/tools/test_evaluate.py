"""The command line from a model folder to a report, in one process, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.evaluation.records import read_records
from megatron_longrope2.rope import make_factors
from megatron_longrope2.tools.evaluate import main
from tests.distributed.launch import ROOT
from tests.evaluation.tiny_llama import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_model(folder)
    config = json.loads((folder / "hf" / "config.json").read_text())
    plain = folder / "plain"
    plain.mkdir()
    for file in (folder / "hf").iterdir():
        (plain / file.name).write_bytes(file.read_bytes())
    for field in ("rope_scaling", "rope_parameters", "original_max_position_embeddings"):
        config.pop(field, None)
    config["max_position_embeddings"] = 64
    (plain / "config.json").write_text(json.dumps(config))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
    main()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_measures_and_reports_side_by_side(model: Path, monkeypatch, tmp_path, capsys, caplog) -> None:
    for name in ("plain", "hf"):
        output = ("--output", tmp_path / name, "--hf-dir", model / name, "--books", model / "books")
        grid = ("--lengths", 150, 200, "--depths", 2, "--repetitions", 3, "--seed", 1)
        run(monkeypatch, "needle", *output, *grid)
        texts = ("--short-texts", 3, "--long-texts", 2, "--long-length", 250)
        run(monkeypatch, "perplexity", *output, *texts, "--windows", 64, "--stride", 32)
    assert (
        "plain: not extended (RoPE factors: none): lengths 150, 200 are beyond its window of 64"
        in caplog.text
    )
    records = read_records(tmp_path / "plain")
    assert records["needle"]["beyond_window"] == [150, 200]
    assert records["perplexity"]["beyond_window"] == [250]
    capsys.readouterr()
    results = [f"before={tmp_path / 'plain'}", f"after={tmp_path / 'hf'}"]
    run(monkeypatch, "report", *results, "--baseline", "before", "--output", tmp_path / "report")
    shown = capsys.readouterr().out
    report: dict[str, Any] = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["retention"]["after"]["short_perplexity"] == pytest.approx(1.0, abs=1e-5)
    difference = report["comparisons"]["after"]
    assert abs(difference["200"]["mean"]) > 1e-3
    assert difference["200"]["count"] == 6
    assert report["checkpoints"]["before"]["beyond_window"] == [150, 200, 250]
    assert "| before | none | 64 | 64 (measured beyond: 150, 200, 250) |" in shown
    names = ("needles", "needle_accuracy", "needle_perplexity", "perplexity", "short_long")
    assert report["pictures"] == [f"{name}.png" for name in names]
    assert all((tmp_path / "report" / name).exists() for name in report["pictures"])


def test_compares_checkpoints_and_factor_files(model: Path, monkeypatch, tmp_path, caplog, capsys) -> None:
    shape = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": 64, "target_length": 256}
    make_factors("pi", **shape).save(tmp_path / "pi.json")
    candidates = [f"plain={model / 'plain'}", f"ntk={model / 'megatron'}"]
    candidates.append(f"pi={model / 'megatron'},{tmp_path / 'pi.json'}")
    options = ["--books", model / "books", "--lengths", 150, "--depths", 2, "--repetitions", 2]
    options += ["--short-texts", 2, "--long-texts", 0, "--measures", "needle", "perplexity"]
    options += ["--baseline", "plain", "--reference", "ntk", "--output", tmp_path / "out"]
    words = ["compare", *candidates, *options]
    # In a process of its own, in which Megatron loads one checkpoint after another.
    command = [sys.executable, ROOT / "tools/evaluate.py", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: about["method"] for name, about in report["checkpoints"].items()} == {
        "plain": "none",
        "ntk": "longrope",
        "pi": "pi",
    }
    perplexity = {name: value["perplexity"]["150"] for name, value in report["needle"].items()}
    run(monkeypatch, "needle", "--hf-dir", model / "hf", *options[:8], "--output", tmp_path / "hf")
    expected = read_records(tmp_path / "hf")["needle"]["result"]["by_length"]["150"]["perplexity"]
    assert perplexity["ntk"] == pytest.approx(expected, rel=1e-4)
    assert perplexity["pi"] != pytest.approx(expected, rel=1e-2)
    assert report["retention"]["pi"]["short_perplexity"] == pytest.approx(1.0, abs=1e-5)
    assert set(report["comparisons"]) == {"plain", "pi"}
    # Once more: nothing is measured again, until the factor file is another.
    monkeypatch.setattr("megatron_longrope2.evaluation.subject.open_hf", None)
    monkeypatch.setattr("megatron_longrope2.evaluation.subject.open_megatron", None)
    run(monkeypatch, *words)
    assert f"pi: measured before, in {tmp_path / 'out' / 'pi'}" in caplog.text
    assert json.loads((tmp_path / "out" / "report.json").read_text())["needle"] == report["needle"]
    os.utime(tmp_path / "pi.json", (time.time() + 9, time.time() + 9))
    with pytest.raises(TypeError, match="not callable"):
        run(monkeypatch, *words)
    for wrong, message in (
        (["compare", "plain", *options], "plain: not NAME=CHECKPOINT or NAME=CHECKPOINT,FACTORS"),
        (["compare", f"a={tmp_path / 'no'}", *options], f"{tmp_path / 'no'}: no such folder"),
        (["compare", candidates[1], *options], "--baseline: 'plain' is not the name of a checkpoint given"),
        (["compare", candidates[0], *words[1:]], "give each a name of its own"),
    ):
        assert message in refused(monkeypatch, capsys, *wrong)


def test_ruler_by_the_command_line(model: Path, monkeypatch, tmp_path) -> None:
    # The tiny window has no room for the benchmark's wording; any generator serves here.
    monkeypatch.setattr("megatron_longrope2.evaluation.ruler.niah.TEMPLATE", "{some}{context}{query}")
    monkeypatch.setattr("megatron_longrope2.evaluation.ruler.niah.PREFIX", "{query}")
    monkeypatch.setattr("megatron_longrope2.evaluation.ruler.niah.NOISE", "the lord")
    options = ("--tasks", "niah_single_1", "--lengths", 256, "--samples", 2)
    run(monkeypatch, "ruler", "--hf-dir", model / "hf", "--output", tmp_path / "r", *options)
    record = read_records(tmp_path / "r")["ruler"]
    assert record["result"]["average"] == {"256": 0.0}
    assert record["settings"]["tasks"] == ["niah_single_1"]
    run(monkeypatch, "report", f"a={tmp_path / 'r'}", "--ruler-threshold", 0, "--output", tmp_path / "report")
    assert "| a | longrope | 64 | 256 | 256 |" in (tmp_path / "report" / "report.md").read_text()


def test_generates_across_the_boundary(model: Path, monkeypatch, capsys) -> None:
    text = " ".join(["the lord"] * 29)
    run(monkeypatch, "generate", "--hf-dir", model / "hf", "--prompt", text, "--max-new-tokens", 20)
    assert capsys.readouterr().out.startswith(f"...{text[-200:]}[")


@pytest.mark.slow
def test_lm_eval_on_a_local_task(model: Path, monkeypatch, capsys, tmp_path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"text": "the lord", "choices": [" his", " them"], "label": n % 2} for n in range(4)]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "local.yaml").write_text(
        "task: local_choice\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tasks / 'rows.jsonl'}\n"
        'doc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
        "metric_list:\n  - metric: acc\n"
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # Without the harness's own tasks, whose thirteen thousand files take ten seconds to read, twice.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    options = ("--tasks", "local_choice", "--metric", "acc", "--include-path", tasks, "--dtype", "float32")
    run(monkeypatch, "lm-eval", "--hf-dir", model / "hf", "--output", tmp_path / "out", *options)
    unknown = ("--tasks", "nothing", "--output", tmp_path / "none")
    assert "no task named nothing" in refused(
        monkeypatch, capsys, "lm-eval", "--hf-dir", model / "hf", *unknown
    )
    record = read_records(tmp_path / "out")["lm_eval"]
    assert record["settings"]["max_length"] == 256
    assert record["result"]["tasks"]["local_choice"]["main"] == 50.0
    run(monkeypatch, "report", f"only={tmp_path / 'out'}", "--output", tmp_path / "report")
    assert "| only | 50.0 ± 56.6 | 50.0 |" in (tmp_path / "report" / "report.md").read_text()


def test_refusals(model: Path, monkeypatch, capsys, tmp_path) -> None:
    def line(*words: object) -> str:
        return refused(monkeypatch, capsys, *words)

    out = ("--output", tmp_path / "out")
    nowhere = ("--hf-dir", model / "nowhere", "--books", model / "books", "--lengths", 64)
    assert f"error: {model / 'nowhere'}" in line("needle", *nowhere, *out)
    blind = tmp_path / "blind"
    shutil.copytree(model / "hf", blind)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(blind)
    what = ("--hf-dir", blind, "--books", model / "books", "--lengths", 150)
    assert "tokenizer: cannot encode the haystack" in line("needle", *what, *out)
    assert line("report", "a", *out) == (
        "error: a: not NAME=DIR; write the name that a checkpoint is shown by, then its results"
    )
    assert "no results there" in line("report", f"a={tmp_path}", *out)
    here = tmp_path / "here"
    here.mkdir()
    (here / "ruler.json").write_text('{"format": "longrope2-evaluation/1", "kind": "ruler"}')
    assert f"a={here}: a is given twice" in line("report", f"a={here}", f"a={here}", *out)
    long_prompt = " ".join(["the"] * 300)
    assert "longer than the target length of 256" in line(
        "generate", "--hf-dir", model / "hf", "--prompt", long_prompt
    )
    assert "nothing to continue" in line("generate", "--hf-dir", model / "hf")
    of_hf = ("--hf-dir", model / "hf", "--books", model / "books", *out)
    assert "prompt 0: is empty" in line("generate", *of_hf[:2], "--prompt", "")
    assert "cannot be read as UTF-8 text" in line("generate", *of_hf[:2], "--prompt-file", tmp_path / "no")
    assert "300 tokens are longer than the target length of 256" in line("needle", *of_hf, "--lengths", 300)
    assert "--lengths: 150 is given twice" in line("needle", *of_hf, "--lengths", 150, 150)
    assert "argument --depths: 0: not a whole" in line("needle", *of_hf, "--lengths", 150, "--depths", 0)
    split = ("--lengths", 150, "--tensor-model-parallel-size", 2)
    assert "only Megatron checkpoints are split" in line("needle", *of_hf, *split)
    nothing = ("--short-texts", 0, "--long-texts", 0)
    assert "leave nothing to measure" in line("perplexity", *of_hf, *nothing)
    assert "window: 1 has no token to predict" in line("perplexity", *of_hf, *nothing, "--windows", 1)
    assert "--long-length: 1 has no token" in line("perplexity", *of_hf, "--long-length", 1)
    suite = ("lm-eval", "--hf-dir", model / "hf", "--suite", "short", *out)
    assert "257 tokens are longer than the target length of 256" in line(*suite, "--max-length", 257)
    assert "use --max-length 64, the original length" in line(*suite, "--backend", "vllm")
    assert "no such folder; give one with task" in line(*suite, "--include-path", tmp_path / "no")
    (tmp_path / "needle.json").write_text('{"format": "other"}')
    assert "needle.json: format: not 'longrope2-evaluation/1'" in line("report", f"a={tmp_path}", *out)
    assert not (tmp_path / "out").exists()
