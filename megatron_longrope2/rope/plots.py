"""Pictures of factors: one dimension's cosine, and factors by dimension (LongRoPE2, Figures 2 and 4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import replacing
from megatron_longrope2.rope.factors import RopeFactors
from megatron_longrope2.rope.frequencies import periods

_UNSEEN: dict[str, Any] = {"color": "tab:red", "alpha": 0.1, "linewidth": 0}
_RING: dict[str, Any] = {"s": 90, "facecolors": "none", "linewidths": 1.5, "zorder": 3}


def plot_factors(sets: Mapping[str, RopeFactors], path: str | Path) -> None:
    """Long factors by dimension, with the region below the OOD bound shaded (Figures 2(b) and 4).

    Args:
        sets: label -> factors.
        path: image to write; the suffix says the format (.png, .pdf, .svg).

    Raises:
        InputError: the image cannot be written, or its format is unknown.
    """
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for (label, factors), marker in zip(sets.items(), "osD^vP*X<>" * len(sets), strict=False):
        (line,) = axes.plot(factors.long_factor, marker=marker, markersize=3.5, linewidth=1.3, label=label)
        if factors.critical_dim is not None:
            at = min(factors.critical_dim, factors.rotary_dim // 2 - 1)
            axes.scatter([at], [factors.long_factor[at]], edgecolors=line.get_color(), **_RING)
    last = max(factors.rotary_dim for factors in sets.values()) // 2 - 1
    for start, scale in sorted({(f.theoretical_critical_dim, f.scale) for f in sets.values()}):
        label = f"out of distribution: from dimension {start} on, below {scale:g}"
        axes.fill_between([start, last], 1, scale, label=label, **_UNSEEN)
        axes.plot([start, start, last], [1, scale, scale], color="tab:red", linewidth=1, linestyle="--")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlim=(-0.5, last + 0.5), xlabel="RoPE dimension (cosine index)", ylabel="rescaling factor")
    axes.grid(alpha=0.3)
    if any(factors.critical_dim is not None for factors in sets.values()):
        axes.scatter([], [], edgecolors="grey", label="critical dimension of the factors", **_RING)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_cosine(factors: RopeFactors, dim: int, path: str | Path) -> None:
    """One period of a dimension's cosine, with the part that training never showed marked (Figure 2(a)).

    Below it, how far the angles reach: of positions up to the original length, which were trained on, and of
    positions up to the target, plain and rescaled. The axis is the angle, as a position of plain RoPE.
    Periods beyond four targets are cut off at the target.

    Args:
        factors: the set.
        dim: cosine dimension, 0 .. rotary_dim/2 - 1.
        path: image to write.

    Raises:
        InputError: there is no such dimension, or the image cannot be written.
    """
    half = factors.rotary_dim // 2
    if not 0 <= dim < half:
        raise InputError(f"dimension {dim}: outside [0, {half - 1}], the dimensions of these factors")
    period = float(periods(factors.rope_base, factors.rotary_dim)[dim])
    original, target, factor = factors.original_length, factors.target_length, factors.long_factor[dim]
    end = period if period <= 4 * target else 1.05 * target
    figure, (curve, reach) = plt.subplots(
        2, sharex=True, figsize=(8, 4.4), height_ratios=(3, 1), layout="constrained"
    )
    whole, seen = np.linspace(0, end, 2001), np.linspace(0, min(original, end), 501)
    curve.plot(whole, np.cos(2 * np.pi * whole / period), color="tab:blue", linewidth=1.2, alpha=0.5)
    curve.plot(
        seen, np.cos(2 * np.pi * seen / period), color="tab:blue", linewidth=3.5, label="seen in training"
    )
    if period > original:
        unseen = f"never seen in training: {1 - original / period:.1%} of the period"
        curve.axvspan(original, end, label=unseen, **_UNSEEN)
        reach.axvspan(original, end, **_UNSEEN)
    names = (f"up to {original}", f"up to {target}, plain", f"up to {target}, / {factor:.4g}")
    lengths = [min(length, end) for length in (original, target, target / factor)]
    reach.barh(names, lengths, color=["tab:blue", "tab:grey", "tab:orange"], height=0.6)
    reach.invert_yaxis()
    curve.set_title(
        f"dimension {dim}: a period is {period:.0f} tokens, training showed {original / period:.3g} periods",
        fontsize=10,
    )
    curve.set(ylabel="cosine", xlim=(0, end))
    curve.grid(alpha=0.3)
    curve.legend(fontsize=8)
    reach.set_xlabel("angle, as a position of plain RoPE (tokens)")
    reach.xaxis.set_major_formatter("{x:g}")
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure whole and close it; the suffix of `path` says the format (none: PNG).

    Raises:
        InputError: the image cannot be written, or its format is unknown.
    """
    try:
        with replacing(path) as partial:
            figure.savefig(partial, format=Path(path).suffix.removeprefix(".") or "png", dpi=150)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    finally:
        plt.close(figure)
