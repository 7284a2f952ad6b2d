"""Command lines that the tools understand, and a job file that bash reads back word for word."""

import shlex
import subprocess
from pathlib import Path

import pytest

from megatron_longrope2.cli import longrope2
from megatron_longrope2.launch.commands import job_file, stage_commands
from megatron_longrope2.launch.settings import NEEDS, ROOT, load_settings
from tests.launch.conftest import Write


def test_training(write: Write, tmp_path: Path) -> None:
    settings = load_settings(write())
    (words,) = stage_commands(settings, "train")
    line = " ".join(words)
    run = tmp_path / "run"
    assert f"--pool short 3 {run}/data/short --pool long 7 {tmp_path}/long" in line
    assert f"--rope-factors {run}/search/factors.json --seq-length 512" in line
    assert "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 1 --context-parallel-size 2" in line
    assert "--exit-signal SIGURG" in line
    assert "--exit-signal-handler" in words
    # The settings' own options come last, and the last one counts.
    assert words[-3:] == ["--sequence-parallel", "--lr", "1e-3"]


def test_factors_instead_of_a_search(write: Write) -> None:
    text = ('[stages.search]\ntime = "10:00"', "")
    settings = load_settings(write(text, ("[slurm]", 'factors = "llama3-8b-128k"\n[slurm]')))
    (words,) = stage_commands(settings, "train")
    assert words[words.index("--rope-factors") + 1] == "llama3-8b-128k"


def test_measures(write: Write, tmp_path: Path) -> None:
    for kind, words in zip(
        ("needle", "lm-eval"), stage_commands(load_settings(write()), "evaluate"), strict=True
    ):
        assert words[:2] == ["evaluate", kind]
        assert words[words.index("--load") + 1] == str(tmp_path / "run/checkpoints")


@pytest.mark.parametrize("stage", [name for name in NEEDS if name != "train"])
def test_the_verbs_know_the_options(stage: str) -> None:
    settings = load_settings(ROOT / "slurm/example.toml")
    for words in stage_commands(settings, stage):
        assert words[0] == stage
        longrope2().parse_args(words, exit_on_error=False, print_error=False)


def test_the_example_is_the_recipe() -> None:
    """slurm/example.toml and examples/llama3_8b, whose layout tests/examples compares with the planner."""
    show = (
        'source "$0"; echo $TENSOR_PARALLEL $CONTEXT_PARALLEL $STEPS $GLOBAL_BATCH_SIZE $TARGET_LENGTH $NODES'
    )
    finished = subprocess.run(
        ["bash", "-c", show, ROOT / "examples/llama3_8b/settings.sh"],
        capture_output=True,
        text=True,
        check=True,
    )
    tensor, context, steps, batch, length, nodes = finished.stdout.split()
    settings = load_settings(ROOT / "slurm/example.toml")
    train = settings.stages["train"]
    assert (train.tensor_parallel, train.context_parallel) == (int(tensor), int(context))
    assert settings.stages["search"].tensor_parallel == int(tensor)
    assert (train.nodes, settings.model.target_length) == (int(nodes), int(length))
    options = " ".join(stage_commands(settings, "train")[0])
    recipe = (ROOT / "examples/llama3_8b/4_train.sh").read_text()
    assert f"--global-batch-size {batch} --train-iters {steps} " in options
    assert "--lr-warmup-iters 40" in options
    for same in (
        "--lr 2e-5",
        "--lr-decay-style cosine",
        "--adam-beta2 0.95",
        "--weight-decay 0",
        "--clip-grad 1.0",
    ):
        assert same in options
        assert same in recipe


def test_bash_reads_the_job_file_back(write: Write, tmp_path: Path) -> None:
    odd = """--note "it's $HOME `x` a\\\\b" --empty '' --star *"""
    settings = load_settings(
        write(
            ('"--sequence-parallel --lr 1e-3"', f"'''{odd}'''"),
            (
                'python = "python"',
                'python = "python"\ncontainer_image = "/i m.sqsh"\ncontainer_mounts = ["/a:/b"]',
            ),
        )
    )
    file = tmp_path / "job.sh"
    file.write_text(job_file(settings, "train"))
    script = """set -euo pipefail; source "$1"; eval "words=(${commands[0]})"; printf '%s\\n' "${words[@]}"
        printf '%s\\n' "${container[@]}" "$stage" "$processes_per_node" "$run" """
    printed = subprocess.run(
        ["bash", "-c", script, "bash", file], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.split("\n")
    (words,) = stage_commands(settings, "train")
    assert shlex.split(odd)[1] == "it's $HOME `x` a\\b"
    assert printed[: len(words)] == words
    assert printed[len(words) : -1] == [
        "--container-image=/i m.sqsh",
        f"--container-mounts={ROOT}:{ROOT},{tmp_path}/run:{tmp_path}/run,/a:/b",
        *("train", "4", f"{tmp_path}/run"),
    ]
