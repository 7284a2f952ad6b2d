"""Scores on the Megatron model, in every layout, against transformers with full logits."""

import json
from pathlib import Path

import pytest

from tests.processes import torchrun
from tests.search.tiny_model import TARGET, fixed_jobs, reference_scores

WORKER = Path(__file__).with_name("score_worker.py")
LAYOUTS = {
    "one process": (1, ("1", "1", "1")),
    "data parallel": (2, ("1", "1", "1")),
    "tensor and sequence parallel": (2, ("2", "1", "1", "sequence_parallel")),
    "pipeline parallel": (2, ("1", "2", "1")),
    "context parallel": (2, ("1", "1", "2")),
}


@pytest.fixture(scope="module")
def reference(tiny_root: Path) -> list[float]:
    return reference_scores(tiny_root / "hf", fixed_jobs(tiny_root))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_full_logits(tiny_root: Path, tmp_path: Path, reference, layout: str) -> None:
    processes, arguments = LAYOUTS[layout]
    output = tmp_path / "losses.json"
    torchrun(processes, "-m", "tests.scoring.score_worker", tiny_root, output, *arguments)
    reports = [json.loads(Path(f"{output}.{rank}").read_text()) for rank in range(processes)]
    assert all(report["losses"] == reports[0]["losses"] for report in reports)
    assert reports[0]["losses"] == pytest.approx(reference, rel=1e-4)
    assert reports[0]["whole_last_layer"] == pytest.approx(reports[0]["losses"], rel=1e-6)
    assert reports[0]["again"] == reports[0]["losses"], "the factors of an earlier pair were used"
    if processes == 1:
        # The output weight itself, [64, 384]: never tokens x (padded) vocabulary.
        assert reports[0]["largest"] == 64 * 384 < TARGET * 384
