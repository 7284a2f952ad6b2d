"""The needles' gradient on the Megatron model: against finite differences, and the same in every layout."""

import json
from pathlib import Path

import pytest

from tests.processes import torchrun

LAYOUTS = {
    "recompute": (1, ("1", "1", "1", "recompute")),
    "data parallel": (2, ("1", "1", "1", "plain")),
    "tensor parallel": (2, ("2", "1", "1", "recompute")),
    "pipeline parallel": (2, ("1", "2", "1", "recompute")),
    "context parallel": (2, ("1", "1", "2", "plain")),
}


def _reports(root: Path, output: Path, processes: int, arguments: tuple[str, ...]) -> list[dict]:
    torchrun(processes, "-m", "tests.search.loss_worker", root, output, *arguments)
    return [json.loads(Path(f"{output}.{rank}").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def exact(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One process in float64, with finite differences."""
    output = tmp_path_factory.mktemp("loss") / "exact"
    return _reports(tiny_root, output, 1, ("1", "1", "1", "double"))[0]


def test_gradient_is_the_slope(exact: dict) -> None:
    for name, (_, *gradient) in exact["gradients"].items():
        largest = max(map(abs, gradient))
        assert largest > 1e-3
        assert exact["slopes"][name] == pytest.approx(gradient, rel=1e-5, abs=1e-6 * largest), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_gradient_of_one_process(
    tiny_root: Path, tmp_path: Path, exact: dict, layout: str
) -> None:
    reports = _reports(tiny_root, tmp_path / "loss", *LAYOUTS[layout])
    for report in reports:
        assert report["gradients"] == reports[0]["gradients"]
        assert report["frozen"]
        assert report.get("like_a_weight", 0) == 0, "a step made something as large as a weight"
    for name, values in reports[0]["gradients"].items():
        largest = max(map(abs, exact["gradients"][name]))
        assert values == pytest.approx(exact["gradients"][name], rel=1e-5, abs=1e-5 * largest), name
