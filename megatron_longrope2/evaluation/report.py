"""One report for several checkpoints side by side: the paper's tables and figures, JSON, Markdown and PNG."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.needle_grid import NeedleGrid, compare_needles
from megatron_longrope2.evaluation.plots import plot_lines, plot_needles, plot_short_against_long
from megatron_longrope2.evaluation.records import provenance
from megatron_longrope2.evaluation.report_tables import markdown
from megatron_longrope2.evaluation.ruler.run import RulerResult
from megatron_longrope2.files import write_json, write_text

Records = Mapping[str, Mapping[str, Any]]
"""A checkpoint's records by kind, as `records.read_records` gives them."""

RULER_THRESHOLD = 85.6
"""RULER's bar for the effective length, percent: Llama2-7B at 4K (Hsieh et al. 2024, section 4)."""
NEEDLE_THRESHOLD = 0.9
"""Share of right needles that counts as an effective length here."""


def build_report(
    checkpoints: Mapping[str, Records],
    *,
    baseline: str | None = None,
    ruler_threshold: float = RULER_THRESHOLD,
    needle_threshold: float = NEEDLE_THRESHOLD,
) -> dict[str, Any]:
    """All results side by side.

    Args:
        checkpoints: name -> records.
        baseline: the checkpoint before the extension: short scores are divided by its, needles compared with
        it. ruler_threshold: percent; the longest length whose RULER average is at least this is the effective
        one. needle_threshold: the same for needle accuracy, 0 to 1.

    Returns:
        `checkpoints` {name: {`checkpoint`, `method`, `original_length`, `target_length`, `beyond_window`}},
        `needle`, `perplexity`, `ruler`, `short`, `retention`, `comparisons`, each by name where it was
        measured.

    Raises:
        InputError: there is no checkpoint, the baseline is not one of them, or a record cannot be read.
    """
    if not checkpoints:
        raise InputError("report: no results; give at least one NAME=FOLDER")
    if baseline is not None and baseline not in checkpoints:
        raise InputError(f"report: baseline: {baseline!r} is not one of {', '.join(checkpoints)}")
    report: dict[str, Any] = {
        "checkpoints": {name: _about(records) for name, records in checkpoints.items()},
        "baseline": baseline,
        "needle": _each(checkpoints, "needle", lambda result: _needle(result, needle_threshold)),
        "perplexity": _each(checkpoints, "perplexity", lambda result: result),
        "ruler": _each(checkpoints, "ruler", lambda result: _ruler(result, ruler_threshold)),
        "short": _each(checkpoints, "lm_eval", _short),
        "thresholds": {"ruler": ruler_threshold, "needle": needle_threshold},
    }
    report["retention"] = _retention(report, baseline) if baseline else {}
    report["comparisons"] = _comparisons(checkpoints, baseline) if baseline else {}
    return report


def write_report(
    report: Mapping[str, Any], checkpoints: Mapping[str, Records], folder: str | Path
) -> list[Path]:
    """Write report.json, report.md and the pictures; returns their paths.

    Args:
        report: from `build_report`.
        checkpoints: what it was built from.
        folder: gets the files.
    """
    folder = Path(folder)
    pictures = _pictures(report, checkpoints, folder)
    write_json(
        folder / "report.json", {**report, **provenance(), "pictures": [path.name for path in pictures]}
    )
    write_text(folder / "report.md", markdown(report, pictures))
    return [folder / "report.json", folder / "report.md", *pictures]


def effective_length(scores: Mapping[int, float], threshold: float) -> int | None:
    """The longest length up to which every score reaches the threshold; None if the shortest does not."""
    best = None
    for length in sorted(scores):
        if scores[length] < threshold:
            break
        best = length
    return best


def _about(records: Records) -> dict[str, Any]:
    first = next(iter(records.values()))
    about = {key: first[key] for key in ("checkpoint", "method", "original_length", "target_length")}
    beyond = sorted({length for record in records.values() for length in record["beyond_window"]})
    return {**about, "beyond_window": beyond}


def _each(
    checkpoints: Mapping[str, Records], kind: str, read: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    return {name: read(records[kind]["result"]) for name, records in checkpoints.items() if kind in records}


def _needle(result: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    grid = NeedleGrid.from_dict(dict(result))
    accuracies = {length: grid.at(length).accuracy for length in grid.lengths}
    return {
        "accuracy": {str(length): value for length, value in accuracies.items()},
        "accuracy_ci95": {str(length): list(grid.at(length).accuracy_interval) for length in grid.lengths},
        "perplexity": {str(length): _finite(grid.at(length).perplexity) for length in grid.lengths},
        "effective_length": effective_length(accuracies, threshold),
    }


def _ruler(result: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    scores = RulerResult.from_dict(dict(result))
    averages = {length: scores.average(length) for length in scores.lengths}
    summary = scores.to_dict()
    return {
        "average": summary["average"],
        "tasks": summary["tasks"],
        "effective_length": effective_length(averages, threshold),
    }


def _short(result: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: task["main"] for name, task in result["tasks"].items() if task["main"] is not None}
    average = sum(scores.values()) / len(scores) if scores else None
    return {"tasks": scores, "average": average}


def _retention(report: Mapping[str, Any], baseline: str) -> dict[str, dict[str, float]]:
    """Short scores after / before: of the harness's average, and of short perplexity (before / after)."""
    retention: dict[str, dict[str, float]] = {}
    before = report["short"].get(baseline)
    for name, after in report["short"].items():
        if (
            before
            and before["average"]
            and after["average"]
            and before["tasks"].keys() == after["tasks"].keys()
        ):
            retention.setdefault(name, {})["short_average"] = after["average"] / before["average"]
    base = report["perplexity"].get(baseline, {}).get("short")
    for name, measured in report["perplexity"].items():
        if base and measured.get("short"):
            ratio = base["perplexity"] / measured["short"]["perplexity"]
            retention.setdefault(name, {})["short_perplexity"] = ratio
    return retention


def _comparisons(checkpoints: Mapping[str, Records], baseline: str) -> dict[str, dict[str, Any]]:
    """Needles of every checkpoint minus the baseline's, paired, nats a token; only where samples are the
    same."""
    if "needle" not in checkpoints[baseline]:
        return {}
    base_record = checkpoints[baseline]["needle"]
    base = NeedleGrid.from_dict(base_record["result"])
    found: dict[str, dict[str, Any]] = {}
    for name, records in checkpoints.items():
        if name == baseline or "needle" not in records:
            continue
        if records["needle"]["settings"] != base_record["settings"]:
            continue
        grid = NeedleGrid.from_dict(records["needle"]["result"])
        found[name] = {
            str(length): asdict(compare_needles(grid.at(length), base.at(length)))
            for length in grid.lengths
            if length in base.lengths
        }
    return found


def _pictures(report: Mapping[str, Any], checkpoints: Mapping[str, Records], folder: Path) -> list[Path]:
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
        name: NeedleGrid.from_dict(records["needle"]["result"])
        for name, records in checkpoints.items()
        if "needle" in records
    }
    draw("needles", plot_needles, grids, original_length=original)
    lines = {
        name: {int(n): v for n, v in value["average"].items()} for name, value in report["ruler"].items()
    }
    draw("ruler", plot_lines, lines, "RULER average (%)", original_length=original)
    positions = {
        name: {bucket["end"]: bucket["perplexity"] for bucket in value["positions"]}
        for name, value in report["perplexity"].items()
        if value.get("positions")
    }
    label = "perplexity up to this position"
    draw("perplexity", plot_lines, positions, label, original_length=original, log=True)
    both = {
        name: (value["short"]["perplexity"], report["needle"][name]["accuracy"][longest])
        for name, value in report["perplexity"].items()
        if value.get("short") and name in report["needle"]
        for longest in [max(report["needle"][name]["accuracy"], key=int)]
    }
    labels = ("short perplexity", "needle accuracy at the longest length")
    draw("short_long", plot_short_against_long, both, labels)
    return paths


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
