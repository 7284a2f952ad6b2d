"""Command lines that the tools understand, and a job file that bash reads back word for word."""

import shlex
import subprocess
from pathlib import Path

import pytest

from megatron_longrope2.launch.commands import job_file, stage_commands
from megatron_longrope2.launch.settings import ROOT, load_settings
from tests.launch.conftest import Write
from tests.shell import parsed


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


def test_held_out_books_are_the_searchs_and_the_evaluations(write: Write, tmp_path: Path) -> None:
    settings = load_settings(write(("[slurm]", 'held_out_books = "other"\n[slurm]')))
    for stage, option in (("search", "--held-out-books"), ("evaluate", "--books")):
        for words in stage_commands(settings, stage):
            assert words[words.index(option) + 1] == str(tmp_path / "other")


def test_measures(write: Write, tmp_path: Path) -> None:
    for kind, words in zip(
        ("needle", "lm-eval"), stage_commands(load_settings(write()), "evaluate"), strict=True
    ):
        assert words[:2] == ["evaluate", kind]
        assert words[words.index("--load") + 1] == str(tmp_path / "run/checkpoints")


@pytest.mark.parametrize("settings_file", sorted((ROOT / "slurm").glob("*.toml")), ids=lambda path: path.name)
def test_the_verbs_know_the_options(settings_file: Path) -> None:
    settings = load_settings(settings_file)
    for stage in settings.stages:
        for words in stage_commands(settings, stage):
            assert words[0] == stage
            parsed(words)


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
