"""Settings of a small chain, and a cluster that is not there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.launch import ROOT

BASE = ROOT / "examples/tiny_cpu/base"

SETTINGS = f"""
name = "tiny"
run = "run"

[model]
hf_dir = "{BASE}"
target_length = 512
books = "{ROOT}/examples/tiny_cpu/books/train"

[slurm]
partition = "tiny"
attempts = 4

[environment]
python = "python"

[stages.import]
time = "10:00"

[stages.search]
time = "10:00"

[stages.train]
time = "1-00:00:00"
nodes = 2
processes_per_node = 4
tensor_parallel = 2
context_parallel = 2
pools = ["short 3 {{run}}/data/short", "long 7 {{here}}/long"]
options = "--sequence-parallel --lr 1e-3"

[stages.evaluate]
time = "10:00"
measures = ["needle --lengths 256 512", "lm-eval --suite short"]
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the settings with some text replaced; the file."""

    def write_(*replaced: tuple[str, str]) -> Path:
        text = SETTINGS
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "settings.toml").write_text(text)
        return tmp_path / "settings.toml"

    return write_
