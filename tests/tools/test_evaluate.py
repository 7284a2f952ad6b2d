"""The command line from a model folder to a report, and what it refuses."""

import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.cli import longrope2 as app
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.records import read_records
from megatron_longrope2.rope import make_factors
from tests.evaluation.harness_tasks import small_harness
from tests.evaluation.tiny_llama import LONG
from tests.processes import longrope2


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `hf`, `megatron`, `books`, `tasks`, and `plain`, the same without rescaled RoPE."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name in ("hf", "megatron", "books", "tasks", "long.json"):
        (folder / name).symlink_to(tiny_llama / name)
    plain = folder / "plain"
    shutil.copytree(tiny_llama / "hf", plain)
    config = json.loads((plain / "config.json").read_text())
    for field in ("rope_scaling", "rope_parameters", "original_max_position_embeddings"):
        config.pop(field, None)
    config["max_position_embeddings"] = 64
    (plain / "config.json").write_text(json.dumps(config))
    return folder


def run(*words: object) -> None:
    app()(["evaluate", *map(str, words)], exit_on_error=False, print_error=False)


def refused(*words: object) -> str:
    """The one line of the refusal (`test_cli` sees how it ends a process)."""
    with pytest.raises((InputError, CycloptsError)) as stopped:
        run(*words)
    line = str(stopped.value).strip()
    assert "\n" not in line
    return line


def single_spaced(text: str) -> str:
    return re.sub(" +", " ", text)


def test_measures_and_reports_side_by_side(model: Path, tmp_path, capsys, caplog) -> None:
    for name in ("plain", "hf"):
        output = ("--output", tmp_path / name, "--hf-dir", model / name, "--books", model / "books")
        grid = ("--lengths", 150, 200, "--depths", 2, "--repetitions", 3, "--seed", 1)
        run("needle", *output, *grid)
        texts = ("--short-texts", 3, "--long-texts", 2, "--long-length", 250)
        run("perplexity", *output, *texts, "--windows", 64, "--stride", 32)
    assert (
        "plain: not extended (RoPE factors: none): lengths 150, 200 are beyond its window of 64"
        in caplog.text
    )
    records = read_records(tmp_path / "plain")
    assert records["needle"]["beyond_window"] == [150, 200]
    assert records["perplexity"]["beyond_window"] == [250]
    capsys.readouterr()
    results = [f"before={tmp_path / 'plain'}", f"after={tmp_path / 'hf'}"]
    run("report", *results, "--baseline", "before", "--output", tmp_path / "report")
    shown = single_spaced(capsys.readouterr().out)
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


def test_compares_checkpoints_and_factor_files(model: Path, monkeypatch, tmp_path, caplog) -> None:
    shape = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": 64, "target_length": 256}
    make_factors("pi", **shape).save(tmp_path / "pi.json")
    candidates = [f"plain={model / 'plain'}", f"ntk={model / 'megatron'}"]
    candidates.append(f"pi={model / 'megatron'},{tmp_path / 'pi.json'}")
    needles = {"lengths": 150, "depths": 2, "repetitions": 2}
    options = ["--books", model / "books"]
    options += [word for name, value in needles.items() for word in (f"--needle.{name}", value)]
    options += ["--perplexity.short-texts", 2, "--perplexity.long-texts", 0]
    options += ["--baseline", "plain", "--reference", "ntk", "--output", tmp_path / "out"]
    words = ["compare", *candidates, *options]
    # In a process of its own, in which Megatron loads one checkpoint after another.
    done = longrope2("evaluate", *words)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: about["method"] for name, about in report["checkpoints"].items()} == {
        "plain": "none",
        "ntk": "longrope",
        "pi": "pi",
    }
    perplexity = {name: value["perplexity"]["150"] for name, value in report["needle"].items()}
    alone = [word for name, value in needles.items() for word in (f"--{name}", value)]
    run("needle", "--hf-dir", model / "hf", *options[:2], *alone, "--output", tmp_path / "hf")
    expected = read_records(tmp_path / "hf")["needle"]["result"]["by_length"]["150"]["perplexity"]
    assert perplexity["ntk"] == pytest.approx(expected, rel=1e-4)
    assert perplexity["pi"] != pytest.approx(expected, rel=1e-2)
    assert report["retention"]["pi"]["short_perplexity"] == pytest.approx(1.0, abs=1e-5)
    assert set(report["comparisons"]) == {"plain", "pi"}
    # Once more: nothing is measured again, until the factor file is another.
    monkeypatch.setattr("megatron_longrope2.evaluation.compare.open_subject", None)
    run(*words)
    assert f"pi: measured before, in {tmp_path / 'out' / 'pi'}" in caplog.text
    assert json.loads((tmp_path / "out" / "report.json").read_text())["needle"] == report["needle"]
    os.utime(tmp_path / "pi.json", (time.time() + 9, time.time() + 9))
    with pytest.raises(TypeError, match="not callable"):
        run(*words)
    for wrong, message in (
        (["compare", f"{candidates[1]},", *options], "no factor file after the comma"),
        (["compare", "plain", *options], "plain: not NAME=CHECKPOINT[,FACTORS]; write the name"),
        (["compare", f"a={tmp_path / 'no'}", *options], f"{tmp_path / 'no'}: no such folder"),
        (["compare", candidates[1], *options], "--baseline: 'plain' is not one of ntk"),
        (
            ["compare", candidates[1], "--output", tmp_path / "no"],
            "nothing to measure; give --needle.lengths",
        ),
        (
            ["compare", candidates[0], *words[1:]],
            "plain is given twice; give each checkpoint a name of its own",
        ),
    ):
        assert message in refused(*wrong)


def test_ruler_by_the_command_line(model: Path, monkeypatch, tmp_path) -> None:
    here = ("--hf-dir", model / "hf", "--rope-factors", model / "long.json", "--output", tmp_path / "r")
    # Nothing of it reaches the network.
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with small_harness():
        tasks = ("--tasks", "ruler_cwe", "ruler_fwe")
        run("ruler", *here, "--lengths", LONG, "--samples", 1, *tasks)
        too_short = ("ruler", *here, "--lengths", 100, "--tasks", "ruler_fwe")
        assert "ruler: 100 tokens are too few for ruler_fwe; this tokenizer needs" in refused(*too_short)
        books = ("ruler", *here, "--lengths", LONG, "--tasks", "niah_single_2")
        assert "niah_single_2 needs --books, or essays that are downloaded" in refused(*books)
    record = read_records(tmp_path / "r")["ruler"]
    assert record["result"]["average"] == {str(LONG): 0.0}
    assert record["settings"]["tasks"] == ["ruler_cwe", "ruler_fwe"]
    run("report", f"a={tmp_path / 'r'}", "--ruler-threshold", 0, "--output", tmp_path / "report")
    text = single_spaced((tmp_path / "report" / "report.md").read_text())
    assert f"| a | pi | 64 | {LONG:,} | {LONG:,} |" in text
    assert "| 2 of the 13 tasks |" in text


def test_generates_across_the_boundary(model: Path, capsys) -> None:
    text = " ".join(["the lord"] * 29)
    run("generate", "--hf-dir", model / "hf", "--prompt", text, "--max-new-tokens", 20)
    assert capsys.readouterr().out.startswith(f"...{text[-200:]}[")


def test_lm_eval_by_the_command_line(model: Path, monkeypatch, tmp_path) -> None:
    options = ("--metric", "acc", "--include-path", model / "tasks", "--batch-size", 4)
    hf = ("lm-eval", "--hf-dir", model / "hf", "--output", tmp_path / "out", *options)
    # Nothing of it reaches the network.
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with small_harness():
        run(*hf, "--tasks", "local_choice", "local_answer")
        assert "no task named nothing" in refused(*hf, "--tasks", "nothing")
        # Its data are on the harness's hub.
        (model / "tasks" / "far.yaml").write_text(
            "task: far\ndataset_path: someone/something\noutput_type: multiple_choice\ntest_split: test\n"
            'doc_to_text: ""\ndoc_to_choice: [a, b]\ndoc_to_target: 0\n'
        )
        line = refused(*hf, "--tasks", "far")
    assert "lm-eval: far: " in line
    assert "add --allow-download where there is a network" in line
    record = read_records(tmp_path / "out")["lm_eval"]
    assert record["result"]["max_length"] == 256
    tasks = record["result"]["tasks"]
    assert 0 < tasks["local_choice"]["main"] < 100
    assert set(tasks["local_answer"]["metrics"]) == {"local_answer"}
    run("report", f"only={tmp_path / 'out'}", "--output", tmp_path / "report")
    score = f"{tasks['local_choice']['main']:.1f}"
    text = single_spaced((tmp_path / "report" / "report.md").read_text())
    assert f"| only | {score} ± {1.96 * tasks['local_choice']['stderr']:.1f} | {score} |" in text


def test_refusals(model: Path, tmp_path) -> None:
    out = ("--output", tmp_path / "out")
    nowhere = ("--hf-dir", model / "nowhere", "--books", model / "books", "--lengths", 64)
    assert f"{model / 'nowhere'}" in refused("needle", *nowhere, *out)
    blind = tmp_path / "blind"
    shutil.copytree(model / "hf", blind)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(blind)
    what = ("--hf-dir", blind, "--books", model / "books", "--lengths", 150)
    assert "tokenizer: cannot encode the haystack" in refused("needle", *what, *out)
    assert refused("report", "a", *out) == ("a: not NAME=DIR; write the name that it is shown by, then DIR")
    assert "no results there" in refused("report", f"a={tmp_path}", *out)
    here = tmp_path / "here"
    here.mkdir()
    (here / "ruler.json").write_text('{"format": "longrope2-evaluation/2", "kind": "ruler"}')
    assert f"a={here}: a is given twice" in refused("report", f"a={here}", f"a={here}", *out)
    long_prompt = " ".join(["the"] * 300)
    assert "longer than the target length of 256" in refused(
        "generate", "--hf-dir", model / "hf", "--prompt", long_prompt
    )
    assert "nothing to continue" in refused("generate", "--hf-dir", model / "hf")
    of_hf = ("--hf-dir", model / "hf", "--books", model / "books", *out)
    assert "nothing to continue" in refused("generate", *of_hf[:2], "--prompt", "")
    assert "cannot be read as UTF-8 text" in refused("generate", *of_hf[:2], "--prompt-file", tmp_path / "no")
    assert "300 tokens are longer than the target length of 256" in refused(
        "needle", *of_hf, "--lengths", 300
    )
    assert "--lengths: 150 is given twice" in refused("needle", *of_hf, "--lengths", 150, 150)
    assert 'Invalid value "0" for --depths' in refused("needle", *of_hf, "--lengths", 150, "--depths", 0)
    assert "--books: not given" in refused("needle", *of_hf[:2], *out, "--lengths", 150)
    assert "--load: give either --load" in refused("needle", *out, "--lengths", 150)
    split = ("--lengths", 150, "--tensor-model-parallel-size", 2)
    assert "only Megatron checkpoints take parallel sizes" in refused("needle", *of_hf, *split)
    words = ("--lengths", 150, "--megatron", "--transformer-impl", "local")
    assert "only Megatron checkpoints take parallel sizes" in refused("needle", *of_hf, *words)
    nothing = ("--short-texts", 0, "--long-texts", 0)
    assert "leave nothing to measure" in refused("perplexity", *of_hf, *nothing)
    assert "window: 1 has no token to predict" in refused("perplexity", *of_hf, *nothing, "--windows", 1)
    assert "--long-length: 1 has no token" in refused("perplexity", *of_hf, "--long-length", 1)
    suite = ("lm-eval", "--hf-dir", model / "hf", "--suite", "short", *out)
    assert "257 tokens are longer than the target length of 256" in refused(*suite, "--max-length", 257)
    assert "use --max-length 64, the original length" in refused(*suite, "--backend", "vllm")
    vllm = ("lm-eval", "--hf-dir", model / "hf", "--tasks", "local_text", *out, "--backend", "vllm")
    assert "use --max-length 64, the original length" in refused(*vllm)
    taken = "vllm takes --tensor-model-parallel-size and --bf16 only"
    assert taken in refused(*vllm, "--context-parallel-size", 2)
    assert taken in refused(*vllm, "--megatron", "--sequence-parallel")
    assert "--tasks: give either --tasks or --suite" in refused(*suite, "--tasks", "mmlu")
    assert "no such folder; give one with task" in refused(*suite, "--include-path", tmp_path / "no")
    (tmp_path / "needle.json").write_text('{"format": "other"}')
    assert "needle.json: format: not 'longrope2-evaluation/2'" in refused("report", f"a={tmp_path}", *out)
    assert not (tmp_path / "out").exists()
