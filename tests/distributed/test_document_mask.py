"""Changing any token of a document changes no bit of another's logits, through the whole model."""

from pathlib import Path

import pytest

from megatron_longrope2.files import read_json
from tests.distributed.mask_worker import LENGTHS
from tests.processes import torchrun
from tests.training.conftest import OPTIONS, ORIGINAL

WORKER = Path(__file__).with_name("mask_worker.py")


@pytest.mark.parametrize(
    ("processes", "layout"), [(1, []), (2, ["--context-parallel-size", "2"])], ids=["one process", "CP2"]
)
def test_documents_do_not_see_each_other(
    processes: int, layout: list[str], pools: Path, tmp_path: Path
) -> None:
    assert min(LENGTHS) < ORIGINAL < max(LENGTHS)
    options = ["--rope-factors", pools / "factors.json", "--pool", "long", "1", pools / "long", *layout]
    torchrun(processes, WORKER, tmp_path / "touched.json", *OPTIONS, *map(str, options))
    assert read_json(tmp_path / "touched.json") == {str(i): [i] for i in range(len(LENGTHS))}
