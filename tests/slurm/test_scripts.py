"""The shell scripts are valid, and say nothing about a particular cluster. Needs no Slurm."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.distributed.launch import ROOT

SCRIPTS = sorted([*(ROOT / "slurm").glob("*.sh"), *(ROOT / "slurm").glob("*.sbatch")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed; apt-get install shellcheck")
    finished = subprocess.run(
        ["shellcheck", "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_cluster_is_in_the_settings_alone(script: Path) -> None:
    directives = re.findall(r"^#SBATCH --([\w-]+)", script.read_text(), re.MULTILINE)
    assert set(directives) <= {"requeue", "open-mode"}
