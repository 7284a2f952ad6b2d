"""A report's numbers as Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def markdown(report: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The report as Markdown tables."""
    parts = ["# Evaluation", _table_checkpoints(report), _notes(report)]
    if needles := report["needle"]:
        samples = _range(count for value in needles.values() for count in value["samples"].values())
        parts += [
            f"## Needles found ({samples} a length)",
            _table_lengths(report, "needle", "accuracy", "{:.2f}".format),
        ]
        parts += ["## Needle perplexity", _table_lengths(report, "needle", "perplexity", _perplexity)]
    if report["comparisons"]:
        parts += [f"## Needles against {report['reference']}, paired", _table_comparisons(report)]
    if ruler := report["ruler"]:
        samples = _range(value["samples"] for value in ruler.values())
        parts += ["## RULER, average (%)", _table_lengths(report, "ruler", "average", "{:.1f}".format)]
        parts += [f"## RULER, by task (%, {samples} a task and length)", _table_ruler_tasks(report)]
    if report["perplexity"]:
        parts += ["## Text perplexity", _table_perplexity(report)]
    if report["short"]:
        parts += ["## Short benchmarks (%)", _table_short(report)]
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


def _table_checkpoints(report: Mapping[str, Any]) -> str:
    kinds = [(kind, label) for kind, label in (("ruler", "RULER"), ("needle", "needles")) if report[kind]]
    ratios = [
        (key, label)
        for key, label in (("short_average", "benchmarks"), ("short_perplexity", "perplexity"))
        if any(key in kept for kept in report["retention"].values())
    ]
    rows = []
    for name, about in report["checkpoints"].items():
        beyond = ", ".join(f"{length:,}" for length in about["beyond_window"])
        window = f"{about['target_length']:,}" + (f" (measured beyond: {beyond})" if beyond else "")
        reached = [report[kind].get(name, {}).get("effective_length") for kind, _ in kinds]
        effective = ["-" if length is None else f"{length:,}" for length in reached]
        kept = report["retention"].get(name, {})
        shares = [
            _with_interval(kept[key], kept.get(f"{key}_ci95", []), "{:.1%}".format) if key in kept else "-"
            for key, _ in ratios
        ]
        rows.append([name, about["method"], f"{about['original_length']:,}", window, *effective, *shares])
    header = ["checkpoint", "RoPE", "original", "window"]
    header += [f"effective length, {label}" for _, label in kinds]
    header += [f"kept in the original window, {label}" for _, label in ratios]
    return _table(header, rows)


def _table_lengths(report: Mapping[str, Any], kind: str, field: str, form: Form) -> str:
    """Values with their intervals."""
    lengths = sorted({int(n) for value in report[kind].values() for n in value[field]})
    rows = []
    for name, value in report[kind].items():
        beyond = report["checkpoints"][name]["beyond_window"]
        cells = []
        for length in map(str, lengths):
            if value[field].get(length) is None:
                cells.append("-")
                continue
            cell = _with_interval(value[field][length], value[f"{field}_ci95"][length], form)
            cells.append(f"{cell}*" if int(length) in beyond else cell)
        rows.append([name, *cells])
    return _table(["checkpoint", *(f"{length:,}" for length in lengths)], rows) + _note(rows)


def _table_ruler_tasks(report: Mapping[str, Any]) -> str:
    """A row a task, a column a checkpoint and length."""
    tasks = list(dict.fromkeys(task for value in report["ruler"].values() for task in value["tasks"]))
    lengths = sorted({int(n) for r in report["ruler"].values() for v in r["tasks"].values() for n in v})
    rows = []
    for name, value in report["ruler"].items():
        beyond = report["checkpoints"][name]["beyond_window"]
        for length in lengths:
            scores = [value["tasks"].get(task, {}).get(str(length)) for task in tasks]
            if any(score is not None for score in scores):
                cells = ["-" if score is None else f"{score:.1f}" for score in scores]
                rows.append([name, f"{length:,}{'*' if length in beyond else ''}", *cells])
    return _table(["checkpoint", "tokens", *tasks], rows) + _note(rows)


def _table_perplexity(report: Mapping[str, Any]) -> str:
    measured = report["perplexity"].values()
    buckets = sorted({(b["start"], b["end"]) for value in measured for b in value.get("positions") or []})
    windows = sorted({s["window"] for value in measured for s in value.get("sliding") or []})
    rows = []
    for name, value in report["perplexity"].items():
        beyond = report["checkpoints"][name]["beyond_window"]
        cells = [_perplexity_cell(value.get("short"), False)]
        by_bucket = {(b["start"], b["end"]): b for b in value.get("positions") or []}
        far = bool(by_bucket) and max(end for _, end in by_bucket) in beyond
        cells += [_perplexity_cell(by_bucket.get(bucket), far) for bucket in buckets]
        by_window = {s["window"]: s for s in value.get("sliding") or []}
        cells += [_perplexity_cell(by_window.get(window), window in beyond) for window in windows]
        rows.append([name, *cells])
    header = ["checkpoint", "short texts", *(f"at {start:,}-{end:,}" for start, end in buckets)]
    header += [f"sliding window of {window:,}" for window in windows]
    return _table(header, rows) + _note(rows)


def _perplexity_cell(value: Mapping[str, Any] | None, beyond: bool) -> str:
    if value is None or value["perplexity"] is None:
        return "-"
    cell = _with_interval(value["perplexity"], value.get("ci95") or [], _perplexity)
    return f"{cell}*" if beyond else cell


def _table_short(report: Mapping[str, Any]) -> str:
    tasks = list(dict.fromkeys(task for value in report["short"].values() for task in value["tasks"]))
    rows = []
    for name, value in report["short"].items():
        cells = []
        for task in tasks:
            score, error = value["tasks"].get(task), value["stderr"].get(task)
            cells.append("-" if score is None else f"{score:.1f}")
            cells[-1] += "" if score is None or error is None else f" ± {1.96 * error:.1f}"
        average = "-" if value["average"] is None else f"{value['average']:.1f}"
        rows.append([name, *cells, average])
    return _table(["checkpoint", *tasks, "average"], rows)


def _table_comparisons(report: Mapping[str, Any]) -> str:
    """Differences; those whose interval excludes zero are set in bold."""
    lengths = sorted({int(n) for value in report["comparisons"].values() for n in value})
    rows = []
    for name, value in report["comparisons"].items():
        cells = []
        for length in lengths:
            found = value.get(str(length))
            cell = f"{found['mean']:+.3f} ± {found['ci95']:.3f}" if found else "-"
            cells.append(f"**{cell}**" if found and abs(found["mean"]) > found["ci95"] else cell)
        rows.append([name, *cells])
    about = (
        f"Negative log-likelihood of the answer, nats a token, minus that of {report['reference']} on the "
        f"same samples: positive is worse than {report['reference']}. Bold: the interval excludes zero."
    )
    return f"{about}\n\n" + _table(["checkpoint", *(f"{length:,}" for length in lengths)], rows)


def _with_interval(value: float, interval: Sequence[float | None], form: Form) -> str:
    shown = form(value)
    if len(interval) == 2:
        low, high = ("∞" if end is None else form(end) for end in interval)
        shown += f" ({low}-{high})"
    return shown


def _perplexity(value: float) -> str:
    """Some three digits."""
    return f"{value:,.{max(0, 2 - len(str(int(value))) + 1)}f}"


def _range(counts: Any) -> str:
    found = sorted(set(counts))
    return f"{found[0]} samples" if len(found) == 1 else f"{found[0]} to {found[-1]} samples"


def _note(rows: Sequence[Sequence[str]]) -> str:
    return (
        BEYOND if any(cell.endswith("*") and not cell.endswith("**") for row in rows for cell in row) else ""
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
