"""The experiment for a GPU: its settings, and every stage of it on next to nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from examples.small_gpu.run import CLOSED_FORM, QUICK, SEARCHES, Recipe, main, stages
from megatron_longrope2.evaluation.ruler import TASKS
from megatron_longrope2.files import read_json
from megatron_longrope2.model.dims import ModelDims

ROOT = Path(__file__).parents[2]
BOOKS = ROOT / "examples/tiny_cpu/books"


def test_the_recipe_is_the_experiment_that_was_planned() -> None:
    recipe = Recipe()
    shape = ModelDims(
        name="base",
        num_layers=recipe.layers,
        hidden_size=recipe.hidden_size,
        ffn_hidden_size=recipe.intermediate_size,
        num_attention_heads=recipe.heads,
        num_query_groups=recipe.heads,
        kv_channels=64,
        vocab_size=recipe.vocabulary,
        original_length=recipe.original_length,
        tied=True,
    )
    assert 30e6 < shape.parameters < 100e6
    assert recipe.original_length in (512, 1024)
    assert 16 <= recipe.target_length / recipe.original_length <= 32
    assert recipe.lengths == ("512", "1024", "2048", "4096", "8192")
    assert set(recipe.methods) == {"pi", "ntk", "yarn", "longrope", "longrope2", "learned"}
    assert set(recipe.ruler_tasks) <= set(TASKS)


def test_every_method_gets_the_same_training() -> None:
    recipe = Recipe()
    commands = {stage.name: stage.command for stage in stages(recipe, Path("run"), "books")}
    trainings = {
        tuple(word for word in commands[f"train-{method}"] if not word.startswith("run/"))
        for method in recipe.methods
    }
    assert len(trainings) == 1
    for name in ("evaluate-before", "evaluate-after"):
        shown = [word.partition("=")[0] for word in commands[name] if "=" in word]
        assert shown == ["none", *CLOSED_FORM, *SEARCHES]
    assert "--ruler.tasks" in commands["evaluate-after"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: it would run")
def test_without_a_gpu_the_one_command_says_so() -> None:
    finished = subprocess.run(
        [ROOT / "examples/small_gpu/run_on_gpu.sh"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == "error: no CUDA device; run this on a machine with an H100 or H200\n"


@pytest.mark.slow
@pytest.mark.usefixtures("forked_stages")
def test_every_stage(tmp_path: Path) -> None:
    for split, names in (("train", ["01_genesis", "02_exodus"]), ("held_out", ["05_deuteronomy"])):
        (tmp_path / "books" / split).mkdir(parents=True)
        for name in names:
            shutil.copy(BOOKS / split / f"{name}.txt", tmp_path / "books" / split)
    main(output=tmp_path / "run", books=str(tmp_path / "books"), quick=True)
    results = tmp_path / "run/results"
    about = read_json(results / "run.json")
    assert about["settings"]["target_length"] == QUICK.target_length
    assert all(stage["seconds"] >= 0 for stage in about["stages"])
    for name in ("before", "after"):
        report = read_json(results / name / "report.json")
        assert set(report["checkpoints"]) == {"none", *QUICK.methods}
        assert (results / name / "needles.png").exists()
    # Untrained, every method keeps the original window as it was.
    before = read_json(results / "before/report.json")["perplexity"]
    assert len({row["short"]["perplexity"] for row in before.values()}) == 1
    for method in QUICK.methods:
        factors = read_json(results / f"factors/{method}.json")
        assert (factors["original_length"], factors["target_length"]) == (256, 512)
