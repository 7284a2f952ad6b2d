"""From the demo's measurements to `report.json`, `report.md` and its pictures."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope2.evaluation.needle_grid import NeedleGrid, compare_needles
from megatron_longrope2.evaluation.perplexity import Perplexity
from megatron_longrope2.evaluation.plots import plot_needles, plot_short_against_long
from megatron_longrope2.files import read_json, write_json, write_text
from megatron_longrope2.provenance import device_name, versions
from megatron_longrope2.rope import critical_dim, load_factors
from megatron_longrope2.rope.plots import plot_factors
from megatron_longrope2.statistics import Estimate
from megatron_longrope2.tables import markdown_table

FOUND = ("longrope2", "learned")
TITLES = {
    "none": "no rescaling",
    "pi": "PI",
    "ntk": "NTK",
    "yarn": "YaRN",
    "longrope2": "LongRoPE2",
    "learned": "factors learned by gradient",
    "short_only": "control: short windows only",
    "mixed_text": "ablation: text only, mixed windows",
    "single_window": "ablation: text only, rescaled RoPE on everything",
}


@dataclass(frozen=True)
class Scores:
    """What was measured of a candidate; short texts have the original length, long ones the target length."""

    needles: NeedleGrid
    short_text: Perplexity
    long_text: Perplexity

    @classmethod
    def read(cls, folder: Path) -> "Scores":
        """Read the records of `longrope2 evaluate compare`."""
        needles, texts = (read_json(folder / f"{kind}.json")["result"] for kind in ("needle", "perplexity"))
        short, buckets = texts["short"], texts["positions"]
        nll, tokens = (
            tuple(map(sum, zip(*(bucket[part] for bucket in buckets), strict=True)))
            for part in ("nll", "tokens")
        )
        return cls(
            NeedleGrid.from_dict(needles),
            Perplexity(tuple(short["nll"]), tuple(short["tokens"])),
            Perplexity(nll, tokens),
        )

    def summary(self, original: int, target: int) -> dict[str, Any]:
        """The report's row."""
        return {
            "needle_ppl_target": self.needles.at(target).perplexity,
            "needle_accuracy_target": self.needles.at(target).accuracy,
            "needle_accuracy_original": self.needles.at(original).accuracy,
            "needle_accuracy": {length: self.needles.at(length).accuracy for length in self.needles.lengths},
            "short_ppl": self.short_text.value,
            "long_ppl": self.long_text.value,
        }


def write_report(
    folder: Path,
    original: int,
    target: int,
    untrained: Sequence[str],
    trainings: Sequence[str],
    stages: list[dict[str, object]],
) -> str:
    """Write the report's files into the run's folder and return the table for the screen.

    Args:
        folder: the run's folder.
        original, target: the two lengths, in tokens.
        untrained, trainings: the names of the base's factors, and of the trained models.
        stages: {name, seconds} of each stage.
    """
    before = {name: Scores.read(folder / "measured" / name) for name in untrained}
    after = {name: Scores.read(folder / "measured" / f"trained-{name}") for name in trainings}
    methods = {name: one.summary(original, target) for name, one in before.items()}
    trained = {name: one.summary(original, target) for name, one in after.items()}
    factors = load_factors(folder / "search" / "factors.json")
    base = methods["none"]
    report: dict[str, Any] = {
        "stages": stages,
        "seconds": round(sum(float(str(stage["seconds"])) for stage in stages), 1),
        "original_length": original,
        "target_length": target,
        "ablation_steps": read_json(folder / "settings.json")["ablation_steps"],
        "theoretical_critical_dim": critical_dim(factors.rope_base, factors.rotary_dim, original),
        "critical_dim": factors.critical_dim,
        "base": base,
        "methods": methods,
        "trained": trained,
        "short_retention": base["short_ppl"] / trained["longrope2"]["short_ppl"],
        "learned_short_retention": base["short_ppl"] / trained["learned"]["short_ppl"],
        "control_retention": base["short_ppl"] / trained["short_only"]["short_ppl"],
        "comparisons": _comparisons(before, "longrope2", target),
        "learned_comparisons": _comparisons(before, "learned", target),
        "learned_minus_longrope2": {
            "before": _differences(before, target),
            "after": _differences(after, target),
        },
        "hf_export": {
            "path": str(folder / "hf"),
            **_logit_differences(folder / "verify.json", original, target),
        },
        "versions": versions(),
        "machine": {"device": device_name(), "system": platform.platform()},
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_json(folder / "report.json", report)
    names = [name for name in before if name != "none"]
    files = {name: folder / "factors" / f"{name}.json" for name in names}
    files |= {"longrope2": folder / "search" / "factors.json", "learned": folder / "learn" / "factors.json"}
    plot_factors({TITLES[name]: load_factors(files[name]) for name in names}, folder / "factors.png")
    plot_needles(
        {TITLES[name]: one.needles for name, one in before.items()}
        | {f"{TITLES[name]}, trained": after[name].needles for name in FOUND},
        folder / "needles.png",
        original_length=original,
    )
    plot_short_against_long(
        {TITLES[name]: _point(row) for name, row in methods.items()}
        | {f"{TITLES[name]} (trained)": _point(row) for name, row in trained.items()},
        folder / "short_long.png",
        labels=(f"text perplexity at {original} tokens", f"needle perplexity at {target} tokens"),
        log=(False, True),
    )
    text = _markdown(report)
    write_text(folder / "report.md", text)
    return f"{text}\n{folder}: report.json, report.md, factors.png, needles.png, short_long.png, hf/"


def _comparisons(scores: dict[str, Scores], ours: str, target: int) -> dict[str, dict[str, float]]:
    """`ours` minus each closed-form method, and for learned factors also minus LongRoPE2's."""
    others = [name for name in scores if name != ours and (name != "learned" or ours == "learned")]
    return {name: _needle_difference(scores[ours], scores[name], target) for name in others}


def _differences(scores: dict[str, Scores], target: int) -> dict[str, dict[str, float]]:
    """Learned factors minus LongRoPE2's at the target length: nats per answer token and per text token."""
    learned, found = scores["learned"], scores["longrope2"]
    return {
        "needles": _needle_difference(learned, found, target),
        "long_text": _as_dict(learned.long_text.difference(found.long_text)),
    }


def _needle_difference(one: Scores, other: Scores, target: int) -> dict[str, float]:
    return _as_dict(compare_needles(one.needles.at(target), other.needles.at(target)))


def _as_dict(estimate: Estimate) -> dict[str, float]:
    return {"delta_nll": estimate.mean, "ci95": estimate.ci95, "samples": estimate.count}


def _logit_differences(path: Path, original: int, target: int) -> dict[str, float]:
    largest = {row["length"]: row["largest"] for row in read_json(path)}
    return {"short": largest[original], "long": largest[target]}


def _point(row: dict[str, float]) -> tuple[float, float]:
    return row["short_ppl"], row["needle_ppl_target"]


def _markdown(report: dict[str, Any]) -> str:
    original, target = report["original_length"], report["target_length"]
    ours, learned = report["comparisons"], report["learned_comparisons"]
    worse = [
        TITLES[name] for name, row in report["comparisons"].items() if row["delta_nll"] - row["ci95"] > 0
    ]
    verdict = (
        f"significantly worse than {', '.join(worse)}" if worse else "significantly worse than none of them"
    )
    comparisons = [(TITLES[name], _interval(ours.get(name)), _interval(row)) for name, row in learned.items()]
    export, gain = report["hf_export"], report["learned_minus_longrope2"]
    gains = [
        (title, _interval(gain["before"][key]), _interval(gain["after"][key]))
        for key, title in (("needles", "needles' answers"), ("long_text", "long text"))
    ]
    return f"""# LongRoPE2 on a tiny Llama: {original} -> {target} tokens

Needles and texts are from books and keys that neither training nor the search saw. Critical dimension:
{report["critical_dim"]} found, {report["theoretical_critical_dim"]} in theory.

## Before training

{_scores(report["methods"], original, target)}

How LongRoPE2 and the factors learned by gradient differ from each method on held-out needles of {target}
tokens, in nats per answer token (paired, with 95 % intervals; positive is worse):

{markdown_table(["", "LongRoPE2", "learned"], comparisons)}

LongRoPE2 is {verdict}.

## After training

{_scores(report["trained"], original, target)}

How well the short window is kept (text perplexity of the base / of the trained model, both with the original
RoPE): {report["short_retention"]:.4f} with LongRoPE2's factors, {report["learned_short_retention"]:.4f} with
learned ones, {report["control_retention"]:.4f} for the control that trained on short windows only.

How learned factors differ from LongRoPE2's at {target} tokens, in nats per token (paired, with 95 %
intervals; negative is better):

{markdown_table(["", "before training", "after"], gains)}

What mixed windows protect: after {report["ablation_steps"]} steps on text only, the needle accuracy at
{original} tokens is
{report["trained"]["mixed_text"]["needle_accuracy_original"]:.0%} with mixed windows and
{report["trained"]["single_window"]["needle_accuracy_original"]:.0%} with the rescaled RoPE on everything.

## Export

`hf/` opens with transformers; its largest logit difference from the Megatron model is
{export["short"]:.1e} at {original} tokens and {export["long"]:.1e} at {target}.

## Time

{report["seconds"]:.0f} s in all.

{markdown_table(["stage", "seconds"], [(row["name"], row["seconds"]) for row in report["stages"]])}
"""


def _interval(row: dict[str, float] | None) -> str:
    return "" if row is None else f"{row['delta_nll']:+.3f} ± {row['ci95']:.3f}"


def _scores(table: dict[str, dict[str, Any]], original: int, target: int) -> str:
    lengths = " / ".join(map(str, table["longrope2"]["needle_accuracy"]))
    header = [
        "",
        f"needle perplexity at {target}",
        f"needle accuracy, %, at {lengths}",
        f"text perplexity at {original}",
        f"text perplexity at {target}",
    ]
    rows = [
        (
            TITLES[name],
            f"{row['needle_ppl_target']:.3f}",
            " / ".join(f"{100 * one:.0f}" for one in row["needle_accuracy"].values()),
            f"{row['short_ppl']:.2f}",
            f"{row['long_ppl']:.2f}",
        )
        for name, row in table.items()
    ]
    return markdown_table(header, rows)
