"""What a search leaves behind: the factor file, search.json, a summary in Markdown and the plots."""

import platform
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist

from megatron_longrope2 import __version__
from megatron_longrope2.device import has_gpu
from megatron_longrope2.files import replacing, write_json, write_text
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.search.job import Job, Outcome
from megatron_longrope2.search.objective import perplexity

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def write_results(
    job: Job, outcome: Outcome, methods: dict[str, RopeFactors], held_out: dict[str, Any] | None
) -> dict[str, Any]:
    """Write everything into the output folder.

    Args:
        methods: the winner ("longrope2", ...) and the baselines.
        held_out: what `heldout.compare` returned; None where there was no comparison.

    Returns:
        The content of search.json.
    """
    output = job.settings.output
    report = _report(job, outcome, held_out)
    outcome.factors.save(output / "factors.json")
    outcome.factors.save(output / "factors.csv")
    write_json(output / "search.json", report)
    write_text(output / "search.md", _markdown(report))
    _save(_plot_factors(methods, job.space.critical_dims[-1]), output / "factors.png")
    if job.settings.algorithm == "gradient":
        _save(_plot_learning(outcome.history), output / "learning.png")
    else:
        _save(_plot_fitness(outcome.history), output / "fitness.png")
        _save(_plot_critical_dims(outcome.history, job.space.critical_dims), output / "critical_dims.png")
    return report


def _report(job: Job, outcome: Outcome, held_out: dict[str, Any] | None) -> dict[str, Any]:
    cost = asdict(outcome.cost)
    cost["evaluations_unpruned"] = cost["evaluations"] + cost["pruned"]
    cost["saved"] = cost["pruned"] / max(cost["evaluations_unpruned"], 1)
    return {
        "algorithm": job.settings.algorithm,
        "finished": outcome.finished,
        "perplexity": outcome.perplexity,
        "critical_dim": outcome.factors.critical_dim,
        "theoretical_critical_dim": outcome.factors.theoretical_critical_dim,
        "factors": outcome.factors.to_dict(),
        "held_out": held_out,
        "cost": cost,
        "settings": job.fingerprint,
        "history": outcome.history,
        "command": shlex.join(sys.argv),
        "device": torch.cuda.get_device_name() if has_gpu() else platform.processor() or platform.machine(),
        "ranks": dist.get_world_size(),
        "versions": {
            "megatron_longrope2": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "megatron-core", "transformers", "numpy")},
        },
    }


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        f"# Factor search ({report['algorithm']})",
        "",
        f"Perplexity on the search set {report['perplexity']:.4f}, critical dimension "
        f"{report['critical_dim']} (theoretical: {report['theoretical_critical_dim']}).",
        _spent(report),
    ]
    if not report["finished"]:
        lines.append("A budget ended the search early; the same command with a larger one continues it.")
    if held_out := report["held_out"]:
        lines += [
            "",
            f"Held-out needles ({held_out['samples']} samples), negative log-likelihood per answer token; "
            "the difference is the winner minus the method, paired by sample, with its 95 % interval:",
            "",
            "| method | perplexity | difference |",
            "| --- | --- | --- |",
        ]
        for name, row in sorted(held_out["methods"].items(), key=lambda item: item[1]["nll"]):
            against = held_out["comparisons"].get(name)
            difference = f"{against['delta_nll']:+.3f} ± {against['ci95']:.3f}" if against else "(the winner)"
            lines.append(f"| {name} | {row['perplexity']:.3f} | {difference} |")
    return "\n".join(lines) + "\n"


def _spent(report: dict[str, Any]) -> str:
    cost = report["cost"]
    if report["algorithm"] == "gradient":
        provenance = report["factors"]["provenance"]
        return (
            f"Learned from {provenance['start']}: {cost['steps']} steps of all starts on "
            f"{cost['training_samples']} needle documents, {cost['evaluations']} evaluations to check them, "
            f"in {cost['seconds']:.0f} s; {cost['failed']} steps skipped (NaN)."
        )
    return (
        f"{cost['candidates']} candidates, {cost['evaluations']} evaluations in {cost['seconds']:.0f} s; "
        f"pruning saved {cost['saved']:.0%} of the evaluations; {cost['failed']} candidates failed (NaN)."
    )


def _plot_learning(history: list[dict[str, Any]]) -> Figure:
    """Loss of the fresh needles, thin, and perplexity of the validation needles, for each start."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for number, start in enumerate(dict.fromkeys(entry["start"] for entry in history)):
        mine = [entry for entry in history if entry["start"] == start]
        steps = [(entry["step"], perplexity(entry["loss"])) for entry in mine if "loss" in entry]
        checks = [(entry["step"], perplexity(entry["validation"])) for entry in mine if "validation" in entry]
        axes.plot(*zip(*steps, strict=True), color=f"C{number}", linewidth=0.6, alpha=0.5)
        axes.plot(*zip(*checks, strict=True), color=f"C{number}", marker="o", label=start)
    axes.set(xlabel="step", ylabel="perplexity (points: validation needles)", yscale="log")
    axes.legend()
    return figure


def _plot_fitness(history: list[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    generations = [entry["generation"] for entry in history]
    axes.plot(generations, [perplexity(entry["best_score"]) for entry in history], marker="o", label="best")
    middle = [
        perplexity(sorted(score for _, score in entry["parents"])[len(entry["parents"]) // 2])
        for entry in history
    ]
    axes.plot(generations, middle, marker=".", label="median of the parents")
    axes.set(xlabel="generation", ylabel="perplexity (search set)", yscale="log")
    axes.legend()
    return figure


def _plot_critical_dims(history: list[dict[str, Any]], candidates: range) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    points = [
        (dim, perplexity(score), entry["generation"]) for entry in history for dim, score in entry["parents"]
    ]
    dims, perplexities, generations = zip(*points, strict=True)
    drawn = axes.scatter(dims, perplexities, c=generations, s=18, cmap="viridis")
    figure.colorbar(drawn, label="generation")
    axes.axvline(candidates[-1], color="grey", linestyle="--", label="theoretical critical dimension")
    axes.set(xlabel="critical dimension", ylabel="perplexity of the parents", yscale="log")
    axes.set_xlim(candidates[0] - 0.5, candidates[-1] + 0.5)
    axes.legend()
    return figure


def _plot_factors(methods: dict[str, RopeFactors], theoretical: int) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, factors in methods.items():
        axes.plot(
            factors.long_factor,
            label=name,
            linewidth=2.5 if name == next(iter(methods)) else 1.2,
        )
    axes.axhline(next(iter(methods.values())).scale, color="grey", linewidth=0.8, linestyle=":")
    axes.axvline(theoretical, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="dimension", ylabel="rescaling factor", yscale="log")
    axes.legend()
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)
