"""Pictures of evaluations: needles by length and depth, values by length, short against long."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.needle_grid import NeedleGrid
from megatron_longrope2.evaluation.records import Records
from megatron_longrope2.rope.plots import save_figure

# Heat maps side by side, at most.
COLUMNS = 4
MARKERS = "osD^vP*X<>"
# Length in tokens -> value (None where it is infinite) and the two ends of its interval, if it has one.
Curve = Mapping[int, tuple[float | None, Sequence[float] | None]]


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

    def curves(kind: str, field: str) -> dict[str, Curve]:
        return {
            name: {int(n): (value, found[f"{field}_ci95"][n]) for n, value in found[field].items()}
            for name, found in report[kind].items()
        }

    grids = {
        name: NeedleGrid.from_dict(records["needle"]["result"])
        for name, records in checkpoints.items()
        if "needle" in records
    }
    shares = curves("needle", "accuracy")
    ruler = {
        f"{name} ({report['ruler'][name]['averaged']})": curve
        for name, curve in curves("ruler", "average").items()
    }
    positions = {
        name: {(p["start"] + p["end"]) // 2: (p["perplexity"], p["ci95"]) for p in found["positions"]}
        for name, found in report["perplexity"].items()
        if found["positions"]
    }
    both = {
        name: (found["short"]["perplexity"], shares[name][max(shares[name])][0])
        for name, found in report["perplexity"].items()
        if found["short"] and name in shares
    }
    plot = partial(plot_curves, original_length=original)
    place = "position of the predicted token (middle of its bucket)"
    ends = ("text perplexity in the original window", "needles found at the longest length (share)")
    pictures: dict[str, tuple[Mapping[str, Any], Callable[..., None]]] = {
        "needles": (grids, partial(plot_needles, original_length=original)),
        "needle_accuracy": (shares, partial(plot, ylabel="needles found (share)", top=1.05)),
        "needle_perplexity": (
            curves("needle", "perplexity"),
            partial(plot, ylabel="needle perplexity", log=True),
        ),
        "ruler": (ruler, partial(plot, ylabel="RULER average (%)", top=105)),
        "perplexity": (positions, partial(plot, ylabel="text perplexity", log=True, xlabel=place)),
        "short_long": (both, partial(plot_short_against_long, labels=ends)),
    }
    paths = []
    for name, (values, draw) in pictures.items():
        if values:
            paths.append(folder / f"{name}.png")
            draw(values, paths[-1])
    return paths


def plot_needles(
    grids: Mapping[str, NeedleGrid], path: str | Path, original_length: int | None = None
) -> None:
    """Heat maps of needle accuracy by length and depth, one for each model (LongRoPE2, Figure 6).

    Args:
        grids: title -> results.
        path: image to write; the suffix says the format.
        original_length: tokens; a line is drawn before the first longer length.

    Raises:
        InputError: there is no grid, or the image cannot be written.
    """
    if not grids:
        raise InputError(f"{path}: no needle grid to draw")
    rows = -(-len(grids) // COLUMNS)
    columns = -(-len(grids) // rows)
    figure, panels = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows), layout="constrained", squeeze=False
    )
    for axes, (title, grid) in zip(panels.flat, grids.items(), strict=False):
        image = _heat_map(axes, grid, original_length)
        axes.set_title(f"{title}: {grid.accuracy:.0%}", fontsize=10)
    for axes in panels.flat[len(grids) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=panels, label="answers right", shrink=0.8)
    save_figure(figure, path)


def _heat_map(axes: Axes, grid: NeedleGrid, original_length: int | None) -> plt.cm.ScalarMappable:
    lengths, depths = grid.lengths, grid.depths
    values = np.array(grid.table()).T
    image = axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if 0.15 < value < 0.85 else "white"
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, ha="right")
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel("depth of the needle")
    if original_length is not None:
        inside = sum(length <= original_length for length in lengths)
        if 0 < inside < len(lengths):
            axes.axvline(inside - 0.5, color="black", linewidth=1.5, linestyle="--")
    return image


def plot_short_against_long(
    scores: Mapping[str, tuple[float, float]],
    path: str | Path,
    labels: tuple[str, str] = ("short score", "long score"),
    log: tuple[bool, bool] = (False, False),
) -> None:
    """What each model keeps in the short window against what it reaches in the long one.

    Args:
        scores: model -> (short, long).
        path: image to write.
        labels: of the two axes.
        log: which axes are logarithmic.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for (name, (short, long)), marker in zip(scores.items(), MARKERS * len(scores), strict=False):
        axes.scatter([short], [long], s=70, marker=marker, label=name)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    for logarithmic, set_scale in zip(log, (axes.set_xscale, axes.set_yscale), strict=True):
        if logarithmic:
            set_scale("log")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    save_figure(figure, path)


def plot_curves(
    curves: Mapping[str, Curve],
    path: str | Path,
    ylabel: str,
    original_length: int | None = None,
    *,
    log: bool = False,
    top: float | None = None,
    xlabel: str = "length (tokens)",
) -> None:
    """Values with their intervals by length or position, a line for each checkpoint.

    Args:
        curves: name -> values; infinite ones are not drawn.
        path: image to write.
        ylabel: what the values are, with their unit.
        original_length: tokens; marked by a vertical line.
        log: whether the values' axis is logarithmic too.
        top: of the values' axis, which then begins at 0.
        xlabel: what the lengths are.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for number, (name, curve) in enumerate(curves.items()):
        lengths = sorted(curve)
        # Side by side: intervals at the same length would cover each other.
        places = [length * 1.02 ** (number - len(curves) / 2) for length in lengths]
        values = np.array([curve[length][0] for length in lengths], dtype=float)
        ends = np.array([curve[length][1] or (curve[length][0],) * 2 for length in lengths], dtype=float).T
        errors = np.maximum([values - ends[0], ends[1] - values], 0)
        style: dict[str, Any] = {
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4,
            "elinewidth": 0.8,
            "capsize": 1.5,
        }
        axes.errorbar(places, values, errors, label=name, **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    if top is not None:
        axes.set_ylim(0, top)
    if original_length is not None:
        axes.axvline(original_length, color="black", linewidth=1, linestyle="--", label="original length")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    save_figure(figure, path)
