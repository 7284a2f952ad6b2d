"""One report for several checkpoints side by side: the paper's tables and figures, JSON, Markdown and PNG."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.needle_grid import NeedleGrid, compare_needles
from megatron_longrope2.evaluation.perplexity import Perplexity
from megatron_longrope2.evaluation.records import Records, provenance
from megatron_longrope2.evaluation.report_pictures import draw_pictures
from megatron_longrope2.evaluation.report_tables import markdown
from megatron_longrope2.evaluation.ruler.run import RulerResult
from megatron_longrope2.files import write_json, write_text
from megatron_longrope2.statistics import exponential_interval

RULER_THRESHOLD = 85.6
"""RULER's bar for the effective length, percent: Llama2-7B at 4K (Hsieh et al. 2024, section 4)."""
NEEDLE_THRESHOLD = 0.9
"""Share of right needles that counts as an effective length here."""


def build_report(
    checkpoints: Mapping[str, Records],
    *,
    baseline: str | None = None,
    reference: str | None = None,
    ruler_threshold: float = RULER_THRESHOLD,
    needle_threshold: float = NEEDLE_THRESHOLD,
) -> dict[str, Any]:
    """All results side by side.

    Args:
        checkpoints: name -> records.
        baseline: the checkpoint before the extension, by whose short scores the others' are divided.
        reference: what the others' needles are compared with, sample by sample; default: the baseline.
        ruler_threshold: percent; the longest length whose RULER average is at least this is the effective
            one.
        needle_threshold: the same for needle accuracy, 0 to 1.

    Returns:
        `checkpoints` {name: {`checkpoint`, `method`, `original_length`, `target_length`, `beyond_window`}},
        `needle`, `perplexity`, `ruler`, `short`, `retention`, `comparisons`, each by name where it was
        measured.

    Raises:
        InputError: there is no checkpoint, the baseline or the reference is not one of them, or a record
            cannot be read.
    """
    if not checkpoints:
        raise InputError("report: no results; give at least one NAME=FOLDER")
    for role, name in (("baseline", baseline), ("reference", reference)):
        if name is not None and name not in checkpoints:
            raise InputError(f"report: {role}: {name!r} is not one of {', '.join(checkpoints)}")
    reference = reference or baseline
    report: dict[str, Any] = {
        "checkpoints": {name: _about(records) for name, records in checkpoints.items()},
        "baseline": baseline,
        "reference": reference,
        "needle": _each(checkpoints, "needle", lambda result: _needle(result, needle_threshold)),
        "perplexity": _each(checkpoints, "perplexity", lambda result: result),
        "ruler": _each(checkpoints, "ruler", lambda result: _ruler(result, ruler_threshold)),
        "short": _each(checkpoints, "lm_eval", _short),
        "thresholds": {"ruler": ruler_threshold, "needle": needle_threshold},
    }
    report["retention"] = _retention(report, checkpoints, baseline) if baseline else {}
    report["comparisons"] = _comparisons(checkpoints, reference) if reference else {}
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
    pictures = draw_pictures(report, checkpoints, folder)
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
        "perplexity_ci95": {
            str(length): [_finite(end) for end in grid.at(length).perplexity_interval]
            for length in grid.lengths
        },
        "samples": {str(length): len(grid.at(length).scores) for length in grid.lengths},
        "effective_length": effective_length(accuracies, threshold),
    }


def _ruler(result: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    scores = RulerResult.from_dict(dict(result))
    averages = {length: scores.average(length) for length in scores.lengths}
    summary = scores.to_dict()
    return {
        "average": summary["average"],
        "average_ci95": {str(length): list(scores.average_interval(length)) for length in scores.lengths},
        "samples": max(len(values) for by_length in scores.scores.values() for values in by_length.values()),
        "tasks": summary["tasks"],
        "effective_length": effective_length(averages, threshold),
    }


def _short(result: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: task["main"] for name, task in result["tasks"].items() if task["main"] is not None}
    errors = {name: task.get("stderr") for name, task in result["tasks"].items() if name in scores}
    average = sum(scores.values()) / len(scores) if scores else None
    return {"tasks": scores, "stderr": errors, "average": average}


def _retention(
    report: Mapping[str, Any], checkpoints: Mapping[str, Records], baseline: str
) -> dict[str, dict[str, Any]]:
    """Short scores after / before: of the harness's average, and of short perplexity (before / after)."""
    retention: dict[str, dict[str, Any]] = {}
    before = report["short"].get(baseline)
    for name, after in report["short"].items():
        if (
            before
            and before["average"]
            and after["average"]
            and before["tasks"].keys() == after["tasks"].keys()
        ):
            retention.setdefault(name, {})["short_average"] = after["average"] / before["average"]
    texts = {
        name: _short_texts(records["perplexity"])
        for name, records in checkpoints.items()
        if "perplexity" in records
    }
    base = texts.get(baseline)
    for name, found in texts.items():
        if base and found and found[0] == base[0] and found[1].tokens == base[1].tokens:
            difference = base[1].difference(found[1])
            kept = retention.setdefault(name, {})
            kept["short_perplexity"] = base[1].value / found[1].value
            kept["short_perplexity_ci95"] = [_finite(end) for end in exponential_interval(difference)]
    return retention


def _short_texts(record: Mapping[str, Any]) -> tuple[list[Any], Perplexity] | None:
    """What decided the short texts, and their perplexity, if it was measured and did not overflow."""
    short = record["result"]["short"]
    if not short or short["perplexity"] is None:
        return None
    decided = [record["settings"].get(key) for key in ("books", "short_texts", "seed")]
    return decided, Perplexity(tuple(short["nll"]), tuple(short["tokens"]))


def _comparisons(checkpoints: Mapping[str, Records], reference: str) -> dict[str, dict[str, Any]]:
    """Needles of every checkpoint minus the reference's, paired, nats a token; only of the same samples."""
    if "needle" not in checkpoints[reference]:
        return {}
    base_record = checkpoints[reference]["needle"]
    base = NeedleGrid.from_dict(base_record["result"])
    found: dict[str, dict[str, Any]] = {}
    for name, records in checkpoints.items():
        if name == reference or "needle" not in records:
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


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
