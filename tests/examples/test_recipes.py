"""The recipes' stages run, in small: the demo's model, two processes on a CPU, one training step."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_longrope2.data.mix import load_mix
from megatron_longrope2.launch.commands import stage_commands
from megatron_longrope2.launch.settings import load_settings
from megatron_longrope2.planning.layout import Layout
from megatron_longrope2.planning.memory import GIB
from megatron_longrope2.planning.plan import Row, plan
from megatron_longrope2.planning.settings import GpuName, PlanSettings
from tests.forked_python import forked_python
from tests.processes import ROOT, free_port
from tests.shell import commands, parsed, verb

EXAMPLES = ROOT / "examples"
BASE, BOOKS = EXAMPLES / "tiny_cpu/base", EXAMPLES / "tiny_cpu/books"
STAGES = ["1_import", "2_preprocess", "3_search", "4_train", "5_export", "6_evaluate"]
MIX = """
long_buckets: [4000, 100000]
shares: [1, 1, 0]
repeat: true
sources:
  - {name: bible, tokens: 4K}
"""


def stage(recipe: str, name: str, environment: dict[str, str], *options: str) -> str:
    finished = subprocess.run(
        [EXAMPLES / recipe / f"{name}.sh", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PORT": str(free_port()), **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-4000:]
    return finished.stdout + finished.stderr


@pytest.mark.parametrize("recipe", ["llama3_8b", "phi3_mini"])
def test_every_stage_is_there(recipe: str) -> None:
    for name in STAGES:
        script = EXAMPLES / recipe / f"{name}.sh"
        assert os.access(script, os.X_OK)
        assert f"{name}.sh" in (EXAMPLES / recipe / "README.md").read_text()


def test_the_slurm_example_is_the_recipe(tmp_path: Path) -> None:
    """Every option of slurm/example.toml and of examples/llama3_8b, on the same places."""
    settings = load_settings(ROOT / "slurm/example.toml")
    places = {
        "RUN": str(settings.run),
        "MODEL": str(settings.model.hf_dir),
        "BOOKS": str(settings.model.books),
        "HELD_OUT_BOOKS": str(settings.model.held_out_books),
        "TEXT": "/data/corpora",
        "QUESTIONS": "/data/ruler_questions",
        "WORKERS": "64",
    }
    for script in STAGES:
        name = script[2:]
        started = commands(f"{EXAMPLES}/llama3_8b/{script}.sh", tmp_path / name, **places)
        recipe, chain = [verb(words) for words in started], stage_commands(settings, name)
        assert len(recipe) == len(chain)
        for ours, theirs in zip(recipe, chain, strict=True):
            mine, other = parsed(ours or []), parsed(theirs)
            mine.pop("exit_signal", None), other.pop("exit_signal", None)  # slurm/stage.sbatch has its own
            assert mine == other, name
        if "--nnodes" in started[0]:
            nodes, ranks = (
                int(started[0][started[0].index(f"--n{one}") + 1]) for one in ("nodes", "proc-per-node")
            )
            stage = settings.stages[name]
            assert (nodes, ranks) == (stage.nodes, stage.processes), name
    assert settings.stages.keys() == {script[2:] for script in STAGES}


def test_table_3_names_tasks_of_the_harness(tmp_path: Path) -> None:
    (words,) = commands(f"{EXAMPLES}/llama3_8b/6_evaluate.sh", tmp_path, MEASURES="long")
    tasks = parsed(verb(words) or [])["settings"].tasks
    folder = Path(str(find_spec("lm_eval").origin)).parent / "tasks"  # type: ignore[union-attr]
    named = "".join(file.read_text() for file in folder.glob("*bench/*.yaml"))
    assert len(tasks) == 6
    for task in tasks:
        assert f"task: {task}\n" in named


def test_a_measure_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="error: MEASURES: rulr is not one of needle, ruler"):
        commands(f"{EXAMPLES}/llama3_8b/6_evaluate.sh", tmp_path, MEASURES="rulr")


@pytest.mark.parametrize("recipe", ["llama3_8b", "phi3_mini"])
def test_steps_are_the_papers_tokens(recipe: str) -> None:
    settings = subprocess.run(
        [
            *("bash", "-c", 'source "$0"; echo $((STEPS * GLOBAL_BATCH_SIZE * TARGET_LENGTH))'),
            str(EXAMPLES / recipe / "settings.sh"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(settings.stdout) == pytest.approx(load_mix("paper").tokens, rel=1e-3)


@cache
def planned(recipe: str, gpu: GpuName, gpus: int) -> list[Row]:
    return plan(PlanSettings(model=recipe.replace("_", "-"), gpu=gpu, gpus=gpus))


@pytest.mark.parametrize("gpu", ["a100", "h100"])
@pytest.mark.parametrize("recipe", ["llama3_8b", "phi3_mini"])
def test_the_layout_is_the_planners(recipe: str, gpu: str) -> None:
    best = planned(recipe, gpu, 64)[0].layout
    settings = (EXAMPLES / recipe / "settings.sh").read_text()
    assert f"TENSOR_PARALLEL:={best.tensor}}}" in settings
    assert f"CONTEXT_PARALLEL:={best.context}}}" in settings
    assert (best.pipeline, best.recompute) == (1, "none")


@pytest.mark.parametrize("recipe", ["llama3_8b", "phi3_mini"])
def test_the_table_of_layouts_is_the_planners(recipe: str) -> None:
    table = (EXAMPLES / recipe / "README.md").read_text().partition("| GPUs | TP |")[2]
    rows = [
        [cell.strip() for cell in line.split("|")[1:10]] for line in table.splitlines()[2:] if "|" in line
    ]
    assert len(rows) >= 7
    for gpus, tensor, context, pipeline, data, recompute, gib, *hours in rows:
        kind = {"none": "none", "MLPs": "mlp"}[recompute]
        layout = Layout(int(tensor), int(context), int(pipeline), int(data), kind)  # type: ignore[arg-type]
        for gpu, expected in zip(("h100", "a100"), hours, strict=True):
            if expected:
                (row,) = [row for row in planned(recipe, gpu, int(gpus)) if row.layout == layout]
                assert f"{row.hours:.1f}" == expected, layout
                assert f"{row.memory.total / GIB:.0f}" == gib, layout


@pytest.fixture
def python() -> Iterator[str]:
    """Whose start costs nothing."""
    with forked_python() as path:
        yield str(path)


@pytest.mark.slow
def test_the_stages_run(tmp_path: Path, python: str) -> None:
    text = tmp_path / "text/bible"
    text.mkdir(parents=True)
    verses = (BOOKS / "train/01_genesis.txt").read_text().splitlines()
    documents = ["\n".join(verses[i : i + n]) for n in (3, 40) for i in range(0, 1200, n)]
    (text / "books.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    (tmp_path / "mix.yaml").write_text(MIX)
    books = tmp_path / "books"
    books.mkdir()
    shutil.copy(BOOKS / "held_out/05_deuteronomy.txt", books)
    environment = {
        "MODEL": str(BASE),
        "RUN": str(tmp_path / "run"),
        "TEXT": str(tmp_path / "text"),
        "MIX": str(tmp_path / "mix.yaml"),
        "BOOKS": str(books),
        "HELD_OUT_BOOKS": str(books),
        "ORIGINAL_LENGTH": "256",
        "TARGET_LENGTH": "512",
        "LENGTHS": "256 512",
        "STEPS": "1",
        "GLOBAL_BATCH_SIZE": "2",
        "TENSOR_PARALLEL": "2",
        "CONTEXT_PARALLEL": "1",
        "NODES": "1",
        "GPUS_PER_NODE": "2",
        "WORKERS": "1",
        "PYTHON": python,
        "PYTHON_EXEC": python,  # torchrun's ranks
    }
    stage("phi3_mini", "1_import", environment)
    stage("phi3_mini", "2_preprocess", environment)
    small = ("--population", "8", "--parents", "4", "--iterations", "1", "--samples", "2")
    small += ("--held-out-samples", "0")
    alone = {**environment, "TENSOR_PARALLEL": "1", "GPUS_PER_NODE": "1"}
    stage("phi3_mini", "3_search", alone, *small)
    log = stage("phi3_mini", "4_train", environment)
    assert "iteration        1/       1" in log
    assert "long window loss" in log
    stage("phi3_mini", "5_export", environment)
    config = json.loads((tmp_path / "run/hf/config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "longrope"
    assert config["max_position_embeddings"] == 512
    for measure, options in (
        ("needle", ("--depths", "1", "--repetitions", "1")),
        ("perplexity", ("--short-texts", "4", "--long-texts", "2")),
    ):
        stage("phi3_mini", "6_evaluate", {**alone, "MEASURES": measure}, *options)
        assert (tmp_path / f"run/evaluation/{measure}.json").exists()
