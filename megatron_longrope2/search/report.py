"""What a search leaves behind: the factor file, search.json, a summary in Markdown and the plots."""

from dataclasses import asdict
from typing import Any

import matplotlib.pyplot as plt
import torch.distributed as dist
from matplotlib.figure import Figure

from megatron_longrope2.files import write_json, write_text
from megatron_longrope2.provenance import provenance
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.rope.plots import plot_factors, save_figure
from megatron_longrope2.search.candidate import perplexity
from megatron_longrope2.search.session import Outcome, Session
from megatron_longrope2.search.space import SearchSpace
from megatron_longrope2.tables import markdown_table


def write_results(
    session: Session,
    space: SearchSpace,
    outcome: Outcome,
    methods: dict[str, RopeFactors],
    held_out: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write everything into the output folder.

    Args:
        methods: the winner and the baselines, which are drawn beside it.
        held_out: what `heldout.compare` returned; None where there was no comparison.

    Returns:
        The content of search.json.
    """
    output = session.settings.output
    report = _report(session, outcome, held_out)
    outcome.factors.save(output / "factors.json")
    outcome.factors.save(output / "factors.csv")
    write_json(output / "search.json", report)
    write_text(output / "search.md", _markdown(report))
    plot_factors(methods, output / "factors.png")
    if session.settings.algorithm == "gradient":
        save_figure(_plot_learning(outcome.history), output / "learning.png")
    else:
        figure = _plot_evolution(outcome.history, space.critical_dims)
        save_figure(figure, output / "evolution.png")
    return report


def _report(session: Session, outcome: Outcome, held_out: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "algorithm": session.settings.algorithm,
        "finished": outcome.finished,
        "perplexity": outcome.perplexity,
        "critical_dim": outcome.factors.critical_dim,
        "theoretical_critical_dim": outcome.factors.theoretical_critical_dim,
        "factors": outcome.factors.to_dict(),
        "held_out": held_out,
        "cost": asdict(outcome.cost),
        "settings": session.fingerprint,
        "history": outcome.history,
        "ranks": dist.get_world_size(),
        **provenance(),
    }


def _markdown(report: dict[str, Any]) -> str:
    parts = [
        f"# Factor search ({report['algorithm']})",
        f"Perplexity on the search set {report['perplexity']:.4f}, critical dimension "
        f"{report['critical_dim']} (theoretical: {report['theoretical_critical_dim']}).",
    ]
    if not report["finished"]:
        parts.append("A budget ended the search early; the same command with a larger one continues it.")
    if held_out := report["held_out"]:
        rows = []
        for name, row in sorted(held_out["methods"].items(), key=lambda item: item[1]["nll"]):
            against = held_out["comparisons"].get(name)
            difference = f"{against['delta_nll']:+.3f} ± {against['ci95']:.3f}" if against else "(the winner)"
            rows.append([name, f"{row['perplexity']:.3f}", difference])
        parts += [
            f"Held-out needles ({held_out['samples']} samples), negative log-likelihood per answer token; "
            "the difference is the winner minus the method, paired by sample, with its 95 % interval:",
            markdown_table(["method", "perplexity", "difference"], rows),
        ]
    cost = [(name.replace("_", " "), f"{value:.6g}") for name, value in report["cost"].items()]
    return "\n\n".join([*parts, markdown_table(["cost", ""], cost)]) + "\n"


def _plot_learning(history: list[dict[str, Any]]) -> Figure:
    """Loss of the fresh needles, thin, and perplexity of the validation needles, for each start."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, start in enumerate(dict.fromkeys(entry["start"] for entry in history)):
        mine = [entry for entry in history if entry["start"] == start]
        steps = [(entry["step"], perplexity(entry["loss"])) for entry in mine if "loss" in entry]
        checks = [(entry["step"], perplexity(entry["validation"])) for entry in mine if "validation" in entry]
        axes.plot(*zip(*steps, strict=True), color=f"C{number}", linewidth=0.6, alpha=0.5)
        axes.plot(*zip(*checks, strict=True), color=f"C{number}", marker="o", label=start)
    axes.set(xlabel="step", ylabel="perplexity (points: validation needles)", yscale="log")
    axes.legend()
    return figure


def _plot_evolution(history: list[dict[str, Any]], critical_dims: range) -> Figure:
    """Perplexity of the best and the median of each generation; below, of each critical dimension."""
    figure, (fitness, dims) = plt.subplots(2, figsize=(7, 8), layout="constrained")
    generations = [entry["generation"] for entry in history]
    parents = [sorted((perplexity(score), dim) for dim, score in entry["parents"]) for entry in history]
    fitness.plot(generations, [several[0][0] for several in parents], marker="o", label="best")
    middle = [several[len(several) // 2][0] for several in parents]
    fitness.plot(generations, middle, marker=".", label="median of the parents")
    fitness.set(xlabel="generation", ylabel="perplexity (search set)", yscale="log")
    points = [(dim, one, number) for number, several in enumerate(parents) for one, dim in several]
    x, y, color = zip(*points, strict=True)
    figure.colorbar(dims.scatter(x, y, c=color, s=18, cmap="viridis"), label="generation")
    dims.axvline(critical_dims[-1], color="grey", linestyle="--", label="theoretical critical dimension")
    dims.set(xlabel="critical dimension", ylabel="perplexity of the parents", yscale="log")
    dims.set_xlim(critical_dims[0] - 0.5, critical_dims[-1] + 0.5)
    for axes in (fitness, dims):
        axes.legend()
    return figure
