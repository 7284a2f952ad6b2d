"""Under torchrun a mistake is told once, before the processes meet."""

from pathlib import Path

from tests.distributed.launch import launch
from tests.training.conftest import OPTIONS


def test_one_line_from_two_processes(pools: Path) -> None:
    options = [*OPTIONS, "--tensor-model-parallel-size", "2", "--pool", "long", "1", str(pools / "short")]
    finished = launch(2, "-m", "megatron_longrope2", "train", *options)
    assert finished.returncode != 0
    told = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "not longer than the short window of 64" in told[0]
    assert "exitcode  : 2" in finished.stderr
    assert "> initialized tensor model parallel" not in finished.stdout
