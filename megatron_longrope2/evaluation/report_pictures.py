"""A report's numbers as pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_longrope2.evaluation.needle_grid import NeedleGrid
from megatron_longrope2.evaluation.plots import plot_bars, plot_lines, plot_needles, plot_short_against_long
from megatron_longrope2.evaluation.records import Records


def draw_pictures(report: Mapping[str, Any], checkpoints: Mapping[str, Records], folder: Path) -> list[Path]:
    """Draw what was measured; returns the files' paths.

    Args:
        report: from `report.build_report`.
        checkpoints: what it was built from.
        folder: gets `needles.png` (LongRoPE2, Figure 6), `needle_accuracy.png`, `needle_perplexity.png`,
            `ruler.png`, `perplexity.png` and `short_long.png`.
    """
    originals = {about["original_length"] for about in report["checkpoints"].values()}
    original = originals.pop() if len(originals) == 1 else None
    paths: list[Path] = []

    def draw(
        name: str, plot: Callable[..., None], values: Mapping[str, Any], *rest: Any, **options: Any
    ) -> None:
        if values:
            plot(values, folder / f"{name}.png", *rest, **options)
            paths.append(folder / f"{name}.png")

    grids = {
        name: NeedleGrid.from_dict(dict(records["needle"]["result"]))
        for name, records in checkpoints.items()
        if "needle" in records
    }
    draw("needles", plot_needles, grids, original_length=original)
    needles, ruler = report["needle"], report["ruler"]
    accuracies = {name: _by_category(value["accuracy"]) for name, value in needles.items()}
    intervals = {name: _by_category(value["accuracy_ci95"]) for name, value in needles.items()}
    draw(
        "needle_accuracy", plot_bars, accuracies, "needles found (share, 95 % interval)", intervals, top=1.05
    )
    perplexities = {name: _by_length(value["perplexity"]) for name, value in needles.items()}
    marked = {"original_length": original, "log": True}
    draw("needle_perplexity", plot_lines, perplexities, "needle perplexity", **marked)
    averages = {name: _by_category(value["average"]) for name, value in ruler.items()}
    intervals = {name: _by_category(value["average_ci95"]) for name, value in ruler.items()}
    draw("ruler", plot_bars, averages, "RULER average (%, 95 % interval)", intervals, top=105)
    positions = {
        name: {(bucket["start"] + bucket["end"]) // 2: bucket["perplexity"] for bucket in value["positions"]}
        for name, value in report["perplexity"].items()
        if value.get("positions")
    }
    label = "position of the predicted token (middle of its bucket)"
    draw("perplexity", plot_lines, positions, "text perplexity", xlabel=label, **marked)
    both = {
        name: (value["short"]["perplexity"], needles[name]["accuracy"][longest])
        for name, value in report["perplexity"].items()
        if value.get("short") and name in needles
        for longest in [max(needles[name]["accuracy"], key=int)]
    }
    labels = ("text perplexity in the original window", "needles found at the longest length (share)")
    draw("short_long", plot_short_against_long, both, labels)
    return paths


def _by_category(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{int(length):,} tokens": values[length] for length in sorted(values, key=int)}


def _by_length(values: Mapping[str, Any]) -> dict[int, Any]:
    return {int(length): value for length, value in values.items() if value is not None}
