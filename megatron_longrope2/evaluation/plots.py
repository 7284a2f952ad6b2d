"""Pictures of evaluations: needles by length and depth, short against long scores, scores by method and
length."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.needle_grid import NeedleGrid
from megatron_longrope2.rope.plots import save_figure

COLUMNS = 4
"""Heat maps side by side, at most."""
MARKERS = "osD^vP*X<>"


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


def plot_bars(
    values: Mapping[str, Mapping[str, float]],
    path: str | Path,
    ylabel: str,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    top: float | None = None,
) -> None:
    """Grouped bars: one group a category (a length, a window), one bar in it a method.

    Args:
        values: method -> category -> value; a method may lack a category, and infinite values are not drawn.
        path: image to write.
        ylabel: what the values are, with their unit.
        intervals: method -> category -> (low, high), drawn as error bars where given.
        top: of the axis; default: what the values need.
    """
    categories = list(dict.fromkeys(category for by_category in values.values() for category in by_category))
    bars = len(categories) * len(values)
    figure, axes = plt.subplots(figsize=(max(6.5, 0.25 * bars + 3), 4), layout="constrained")
    width = 0.8 / len(values)
    for number, (method, by_category) in enumerate(values.items()):
        places, heights, errors = [], [], []
        for place, category in enumerate(categories):
            value = by_category.get(category)
            if value is None or not np.isfinite(value):
                continue
            low, high = (intervals or {}).get(method, {}).get(category, (value, value))
            places.append(place + (number - (len(values) - 1) / 2) * width)
            heights.append(value)
            errors.append((max(value - low, 0), max(high - value, 0)))
        yerr = np.array(errors).T if intervals and errors else None
        axes.bar(places, heights, width * 0.95, yerr=yerr, capsize=1.5, error_kw={"lw": 0.8}, label=method)
    axes.set_xticks(range(len(categories)), categories)
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, top)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    save_figure(figure, path)


def plot_lines(
    values: Mapping[str, Mapping[int, float]],
    path: str | Path,
    ylabel: str,
    original_length: int | None = None,
    log: bool = False,
    xlabel: str = "length (tokens)",
) -> None:
    """A value by length in tokens (or position), one line a method; the length axis is logarithmic.

    Args:
        values: method -> length -> value.
        path: image to write.
        ylabel: what the values are, with their unit.
        original_length: tokens; marked by a vertical line.
        log: logarithmic values.
        xlabel: what the lengths are.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for (method, by_length), marker in zip(values.items(), MARKERS * len(values), strict=False):
        lengths: Sequence[int] = sorted(by_length)
        axes.plot(lengths, [by_length[n] for n in lengths], marker=marker, markersize=4, label=method)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    if original_length is not None:
        axes.axvline(original_length, color="black", linewidth=1, linestyle="--", label="original length")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    save_figure(figure, path)
