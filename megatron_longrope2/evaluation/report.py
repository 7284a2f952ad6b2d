"""One report for several checkpoints side by side: the paper's tables and figures, JSON, Markdown and PNG."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

from megatron_longrope2.evaluation.needle_grid import NeedleGrid, compare_needles
from megatron_longrope2.evaluation.perplexity import Perplexity
from megatron_longrope2.evaluation.plots import draw_pictures
from megatron_longrope2.evaluation.records import Records
from megatron_longrope2.evaluation.settings import ReportSettings
from megatron_longrope2.files import write_json, write_text
from megatron_longrope2.provenance import provenance
from megatron_longrope2.statistics import exponential_interval
from megatron_longrope2.tables import markdown_table

Form = Callable[[float], str]

CAPTIONS = {
    "needles": "Needles found, by length and depth; dashed: the original length",
    "needle_accuracy": "Needles found, by length",
    "needle_perplexity": "Perplexity of the needles' answers, by length",
    "ruler": "RULER, average by length",
    "perplexity": "Text perplexity by position in long texts",
    "short_long": "What the original window kept, against what the long one reached",
}
BEYOND = "\n\n\\* beyond the checkpoint's window"


def build_report(checkpoints: Mapping[str, Records], settings: ReportSettings) -> dict[str, Any]:
    """All results side by side.

    Args:
        checkpoints: name -> records.
        settings: what is compared.

    Returns:
        `checkpoints` {name: {`checkpoint`, `method`, `original_length`, `target_length`, `beyond_window`}},
        `needle`, `perplexity`, `ruler`, `short`, `retention`, `comparisons`, each by name where it was
        measured.

    Raises:
        InputError: the baseline or the reference is not one of the checkpoints, or a record cannot be read.
    """
    settings.check(checkpoints)
    reference = settings.reference or settings.baseline
    report: dict[str, Any] = {
        "checkpoints": {name: _about(records) for name, records in checkpoints.items()},
        "baseline": settings.baseline,
        "reference": reference,
        "thresholds": {"ruler": settings.ruler_threshold, "needle": settings.needle_threshold},
        "needle": _each(checkpoints, "needle", lambda result: _needle(result, settings.needle_threshold)),
        "perplexity": _each(checkpoints, "perplexity", dict),
        "ruler": _each(checkpoints, "ruler", lambda result: _ruler(result, settings.ruler_threshold)),
        "short": _each(checkpoints, "lm_eval", _short),
    }
    report["retention"] = _retention(report, checkpoints, settings.baseline) if settings.baseline else {}
    report["comparisons"] = _comparisons(checkpoints, reference) if reference else {}
    return report


def write_report(report: Mapping[str, Any], checkpoints: Mapping[str, Records], folder: Path) -> list[Path]:
    """Write report.json, report.md and the pictures; returns their paths.

    Args:
        report: from `build_report`.
        checkpoints: what it was built from.
        folder: gets the files.
    """
    pictures = draw_pictures(report, checkpoints, folder)
    names = [path.name for path in pictures]
    write_json(folder / "report.json", {**report, **provenance(), "pictures": names})
    write_text(folder / "report.md", markdown(report, pictures))
    return [folder / "report.json", folder / "report.md", *pictures]


def effective_length(scores: Mapping[str, float], threshold: float) -> int | None:
    """The longest length up to which every score reaches the threshold; None if the shortest does not."""
    reached = list(takewhile(lambda length: scores[length] >= threshold, sorted(scores, key=int)))
    return int(reached[-1]) if reached else None


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
    by_length = result["by_length"]
    fields = ("accuracy", "accuracy_ci95", "perplexity", "perplexity_ci95", "samples")
    found: dict[str, Any] = {field: {n: part[field] for n, part in by_length.items()} for field in fields}
    return {**found, "effective_length": effective_length(found["accuracy"], threshold)}


def _ruler(result: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    found = {key: value for key, value in result.items() if key != "scores"}
    return {**found, "effective_length": effective_length(found["average"], threshold)}


def _short(result: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: task["main"] for name, task in result["tasks"].items() if task["main"] is not None}
    errors = {name: result["tasks"][name].get("stderr") for name in scores}
    return {
        "tasks": scores,
        "stderr": errors,
        "average": sum(scores.values()) / len(scores) if scores else None,
    }


def _retention(
    report: Mapping[str, Any], checkpoints: Mapping[str, Records], baseline: str
) -> dict[str, dict[str, Any]]:
    """Short scores after / before: of the harness's average, and of short perplexity (before / after)."""
    retention: dict[str, dict[str, Any]] = {}
    before = report["short"].get(baseline)
    for name, after in report["short"].items():
        comparable = before and before["average"] and before["tasks"].keys() == after["tasks"].keys()
        if comparable and after["average"]:
            retention.setdefault(name, {})["short_average"] = after["average"] / before["average"]
    texts = {name: found for name, records in checkpoints.items() if (found := _short_texts(records))}
    for name, (decided, measured) in texts.items():
        same, base = texts.get(baseline, (None, measured))
        if decided == same and measured.tokens == base.tokens:
            interval = exponential_interval(base.difference(measured))
            retention.setdefault(name, {}).update(
                short_perplexity=base.value / measured.value,
                short_perplexity_ci95=list(interval) if max(interval) < math.inf else None,
            )
    return retention


def _short_texts(records: Records) -> tuple[list[Any], Perplexity] | None:
    """What decided the short texts, and their perplexity, if it was measured and did not overflow."""
    record = records.get("perplexity")
    short = record and record["result"]["short"]
    if not record or not short or short["perplexity"] is None:
        return None
    decided = [record["settings"].get(key) for key in ("books", "short_texts", "seed")]
    return decided, Perplexity(tuple(short["nll"]), tuple(short["tokens"]))


def _comparisons(checkpoints: Mapping[str, Records], reference: str) -> dict[str, dict[str, Any]]:
    """Needles of every checkpoint minus the reference's, paired, nats a token; only of the same samples."""
    needles = {name: records["needle"] for name, records in checkpoints.items() if "needle" in records}
    base = needles.pop(reference, None)
    if base is None:
        return {}
    of_base = NeedleGrid.from_dict(base["result"])
    return {
        name: {
            str(length): asdict(compare_needles(grid.at(length), of_base.at(length)))
            for length in grid.lengths
            if length in of_base.lengths
        }
        for name, record in needles.items()
        if record["settings"] == base["settings"]
        for grid in [NeedleGrid.from_dict(record["result"])]
    }


def markdown(report: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The report as Markdown tables."""
    needle, ruler = report["needle"], report["ruler"]
    counts = _range(count for found in needle.values() for count in found["samples"].values())
    of_each = _range(found["samples"] for found in ruler.values())
    comparisons = f"Needles against {report['reference']}, paired"
    sections = {
        f"Needles found ({counts} a length)": _by_length(report, "needle", "accuracy", "{:.2f}".format),
        "Needle perplexity": _by_length(report, "needle", "perplexity", _perplexity),
        comparisons: _compared(report),
        "RULER, average (%)": _by_length(report, "ruler", "average", "{:.1f}".format),
        f"RULER, by task (%, {of_each} a task and length)": _ruler_tasks(report),
        "Text perplexity": _texts(report),
        "Short benchmarks (%)": _benchmarks(report),
    }
    parts = ["# Evaluation", _checkpoints(report), _notes(report)]
    parts += [f"## {title}\n\n{table}" for title, table in sections.items() if table]
    parts += [f"![{path.stem}]({path.name})\n\n*{CAPTIONS[path.stem]}*" for path in pictures]
    return "\n\n".join(parts) + "\n"


def _notes(report: Mapping[str, Any]) -> str:
    thresholds = report["thresholds"]
    lines = [
        "In brackets, or behind ±: 95 % intervals (Wilson's for shares; Student's for means over samples).",
        f"Effective length: the longest one up to which RULER's average stays at or above "
        f"{thresholds['ruler']:g} %, and needle accuracy at or above {thresholds['needle']:g}; - where the "
        f"shortest measured length is below.",
    ]
    if baseline := report["baseline"]:
        lines.append(
            f"Kept in the original window: the score divided by that of {baseline}; of perplexity, that of "
            f"{baseline} divided by the checkpoint's (above 100 % is better)."
        )
    return "\n".join(lines)


def _checkpoints(report: Mapping[str, Any]) -> str:
    rows = []
    for name, about in report["checkpoints"].items():
        beyond = ", ".join(f"{length:,}" for length in about["beyond_window"])
        row = {
            "checkpoint": name,
            "RoPE": about["method"],
            "original": f"{about['original_length']:,}",
            "window": f"{about['target_length']:,}" + (f" (measured beyond: {beyond})" if beyond else ""),
        }
        for kind, label in (("ruler", "RULER"), ("needle", "needles")):
            if report[kind]:
                length = report[kind].get(name, {}).get("effective_length")
                row[f"effective length, {label}"] = f"{length:,}" if length else "-"
        kept = report["retention"].get(name, {})
        for key, label in (("short_average", "benchmarks"), ("short_perplexity", "perplexity")):
            if any(key in other for other in report["retention"].values()):
                cell = _with_interval(kept.get(key), kept.get(f"{key}_ci95"), "{:.1%}".format)
                row[f"kept in the original window, {label}"] = cell
        rows.append(row)
    return _table(rows)


def _by_length(report: Mapping[str, Any], kind: str, field: str, form: Form) -> str:
    """Values with their intervals, a column for each length."""
    rows: list[dict[Any, str]] = []
    for name, found in report[kind].items():
        beyond = report["checkpoints"][name]["beyond_window"]
        cells = {
            int(n): _with_interval(value, found[f"{field}_ci95"][n], form, int(n) in beyond)
            for n, value in found[field].items()
        }
        over = {"average of": found["averaged"]} if "averaged" in found else {}
        rows.append({"checkpoint": name, **over, **cells})
    return _table(rows)


def _compared(report: Mapping[str, Any]) -> str:
    """Differences; those whose interval excludes zero are set in bold."""
    rows: list[dict[Any, str]] = []
    for name, by_length in report["comparisons"].items():
        rows.append({"checkpoint": name})
        for n, found in by_length.items():
            bold = "**" if abs(found["mean"]) > found["ci95"] else ""
            rows[-1][int(n)] = f"{bold}{found['mean']:+.3f} ± {found['ci95']:.3f}{bold}"
    about = (
        f"Negative log-likelihood of the answer, nats a token, minus that of {report['reference']} on the "
        f"same samples: positive is worse than {report['reference']}. Bold: the interval excludes zero."
    )
    return f"{about}\n\n{_table(rows)}" if rows else ""


def _ruler_tasks(report: Mapping[str, Any]) -> str:
    """A row for each checkpoint and length, a column for each task."""
    rows = []
    for name, found in report["ruler"].items():
        beyond = report["checkpoints"][name]["beyond_window"]
        for n in sorted(found["average"], key=int):
            tokens = f"{int(n):,}{'*' if int(n) in beyond else ''}"
            scores = {task: f"{by[n]:.1f}" for task, by in found["tasks"].items() if n in by}
            rows.append({"checkpoint": name, "tokens": tokens, **scores})
    return _table(rows)


def _texts(report: Mapping[str, Any]) -> str:
    rows = []
    for name, found in report["perplexity"].items():
        beyond = report["checkpoints"][name]["beyond_window"]
        longest = max((part["end"] for part in found["positions"]), default=0)
        parts = [("short texts", found["short"], False)] if found["short"] else []
        for part in found["positions"]:
            parts.append((f"at {part['start']:,}-{part['end']:,}", part, longest in beyond))
        for part in found["sliding"]:
            parts.append((f"sliding window of {part['window']:,}", part, part["window"] in beyond))
        cells = {
            label: _with_interval(part["perplexity"], part["ci95"], _perplexity, starred)
            for label, part, starred in parts
        }
        rows.append({"checkpoint": name, **cells})
    return _table(rows)


def _benchmarks(report: Mapping[str, Any]) -> str:
    rows = []
    for name, found in report["short"].items():
        row = {"checkpoint": name}
        for task, score in found["tasks"].items():
            error = found["stderr"][task]
            row[task] = f"{score:.1f}" + ("" if error is None else f" ± {1.96 * error:.1f}")
        if found["average"] is not None:
            row["average"] = f"{found['average']:.1f}"
        rows.append(row)
    return _table(rows)


def _table(rows: Sequence[Mapping[Any, str]]) -> str:
    """A column for each key, lengths last and in order; "-" where a row lacks it. Empty without rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    columns.sort(key=lambda column: column if isinstance(column, int) else 0)
    header = [f"{column:,}" if isinstance(column, int) else column for column in columns]
    cells = [[row.get(column, "-") for column in columns] for row in rows]
    starred = any(cell.endswith("*") and not cell.endswith("**") for row in cells for cell in row)
    return markdown_table(header, cells) + (BEYOND if starred else "") if rows else ""


def _with_interval(
    value: float | None, interval: Sequence[float] | None, form: Form, beyond: bool = False
) -> str:
    if value is None:
        return "-"
    low_to_high = "-".join(map(form, interval or ()))
    return form(value) + (f" ({low_to_high})" if low_to_high else "") + ("*" if beyond else "")


def _perplexity(value: float) -> str:
    """About three digits."""
    return f"{value:,.{max(0, 2 - len(str(int(value))) + 1)}f}"


def _range(counts: Iterable[int]) -> str:
    found = sorted(set(counts)) or [0]
    return f"{found[0]} samples" if len(found) == 1 else f"{found[0]} to {found[-1]} samples"
