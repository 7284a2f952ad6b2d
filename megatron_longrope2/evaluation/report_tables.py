"""A report's numbers as Markdown tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown(report: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The report as Markdown tables."""
    parts = ["# Evaluation", _table_checkpoints(report)]
    if report["ruler"]:
        parts += ["## RULER, average (%)", _table_lengths(report, "ruler", "average", "{:.2f}")]
        parts += ["## RULER, by task (%)", _table_ruler_tasks(report)]
    if report["needle"]:
        parts += [
            "## Needle accuracy (95 % interval)",
            _table_lengths(report, "needle", "accuracy", "{:.2f}"),
        ]
        parts += ["## Needle perplexity", _table_lengths(report, "needle", "perplexity", "{:.3g}")]
    if report["perplexity"]:
        parts += ["## Text perplexity", _table_perplexity(report)]
    if report["short"]:
        parts += ["## Short benchmarks (%)", _table_short(report)]
    if report["comparisons"]:
        parts += [
            f"## Needles against {report['baseline']} (nats a token, paired, 95 %; negative is better)",
            _table_comparisons(report),
        ]
    parts += [f"![{path.stem}]({path.name})" for path in pictures]
    return "\n\n".join(parts) + "\n"


def _table_checkpoints(report: Mapping[str, Any]) -> str:
    rows = []
    for name, about in report["checkpoints"].items():
        kept = report["retention"].get(name, {})
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.1%}" for key, value in kept.items())
        effective = [
            f"{label} {report[kind][name]['effective_length'] or '-'}"
            for kind, label in (("ruler", "RULER"), ("needle", "needles"))
            if name in report[kind]
        ]
        beyond = (
            f" (measured beyond: {', '.join(map(str, about['beyond_window']))})"
            if about["beyond_window"]
            else ""
        )
        window = f"{about['target_length']}{beyond}"
        extent = ", ".join(effective) or "-"
        rows.append([name, about["method"], about["original_length"], window, extent, shown or "-"])
    return _table(["checkpoint", "RoPE", "original", "window", "effective length", "retention"], rows)


def _table_lengths(report: Mapping[str, Any], kind: str, field: str, form: str) -> str:
    lengths = sorted({int(n) for value in report[kind].values() for n in value[field]})
    rows = []
    for name, value in report[kind].items():
        beyond = report["checkpoints"][name]["beyond_window"]
        cells = []
        for length in lengths:
            number = value[field].get(str(length))
            cell = "-" if number is None else form.format(number)
            if number is not None and field == "accuracy":
                low, high = value["accuracy_ci95"][str(length)]
                cell += f" ({low:.2f}-{high:.2f})"
            cells.append(f"{cell}*" if length in beyond else cell)
        rows.append([name, *cells])
    note = (
        "\n\n\\* beyond the checkpoint's window"
        if any("*" in str(cell) for row in rows for cell in row)
        else ""
    )
    return _table(["checkpoint", *(f"{length:,}" for length in lengths)], rows) + note


def _table_ruler_tasks(report: Mapping[str, Any]) -> str:
    rows = []
    for name, value in report["ruler"].items():
        for task, by_length in value["tasks"].items():
            rows.append([name, task, *(f"{score:.1f}" for score in by_length.values())])
    lengths = max((list(v) for r in report["ruler"].values() for v in r["tasks"].values()), key=len)
    return _table(["checkpoint", "task", *(f"{int(length):,}" for length in lengths)], rows)


def _table_perplexity(report: Mapping[str, Any]) -> str:
    rows = []
    for name, value in report["perplexity"].items():
        cells = [f"{value['short']['perplexity']:.3f}" if value.get("short") else "-"]
        cells += [
            ", ".join(f"{b['start']}-{b['end']}: {b['perplexity']:.2f}" for b in value.get("positions") or [])
            or "-",
            ", ".join(f"{s['window']}: {s['perplexity']:.2f}" for s in value.get("sliding") or []) or "-",
        ]
        rows.append([name, *cells])
    return _table(["checkpoint", "short window", "by position", "sliding window"], rows)


def _table_short(report: Mapping[str, Any]) -> str:
    tasks = list(dict.fromkeys(task for value in report["short"].values() for task in value["tasks"]))
    rows = []
    for name, value in report["short"].items():
        cells = [f"{value['tasks'][task]:.1f}" if task in value["tasks"] else "-" for task in tasks]
        average = "-" if value["average"] is None else f"{value['average']:.1f}"
        rows.append([name, *cells, average])
    return _table(["checkpoint", *tasks, "average"], rows)


def _table_comparisons(report: Mapping[str, Any]) -> str:
    lengths = sorted({int(n) for value in report["comparisons"].values() for n in value})
    rows = []
    for name, value in report["comparisons"].items():
        cells = [value.get(str(length)) for length in lengths]
        rows.append([name, *(f"{c['mean']:+.3f} ± {c['ci95']:.3f}" if c else "-" for c in cells)])
    return _table(["checkpoint", *(f"{length:,}" for length in lengths)], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
