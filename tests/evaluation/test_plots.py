"""The pictures are drawn from what was measured, also from incomplete measurements."""

from pathlib import Path

import matplotlib.image
import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.needle_grid import NeedleGrid, NeedleScore
from megatron_longrope2.evaluation.plots import plot_curves, plot_needles, plot_short_against_long


def grid(right: bool) -> NeedleGrid:
    places = [(length, depth) for length in (64, 128, 256) for depth in (0.0, 0.5, 1.0)]
    return NeedleGrid(tuple(NeedleScore(n, d, 0, 1.0, 7, 7 if right else 3) for n, d in places))


def test_heat_map_is_green_where_answers_are_right_and_red_where_not(tmp_path: Path) -> None:
    for right, channel in ((True, 1), (False, 0)):
        path = tmp_path / f"{right}.png"
        plot_needles({"model": grid(right)}, path, original_length=64)
        pixels = matplotlib.image.imread(path)
        height, width, _ = pixels.shape
        colour = pixels[height // 3, width // 3][:3]
        assert colour.argmax() == channel


def test_four_grids_leave_no_panel_undrawn(tmp_path: Path) -> None:
    plot_needles({str(number): grid(number % 2 == 0) for number in range(4)}, tmp_path / "four.png")
    assert (tmp_path / "four.png").stat().st_size > 10_000


def test_no_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no needle grid"):
        plot_needles({}, tmp_path / "none.png")


def test_missing_and_infinite_values_are_left_out(tmp_path: Path) -> None:
    curves = {"a": {64: (1.0, (0.5, None)), 256: (None, (None, None))}, "b": {256: (2.0, ())}}
    plot_curves(curves, tmp_path / "log.png", "perplexity", 64, log=True)
    plot_curves({"a": {64: (0.5, (0.4, 0.7))}}, tmp_path / "ci.png", "accuracy", top=1.0)
    plot_short_against_long({"a": (1.0, 2.0), "b": (2.0, 1.0)}, tmp_path / "trade.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Format 'xyz' is not supported"):
        plot_curves({"a": {64: (0.5, ())}}, tmp_path / "curves.xyz", "accuracy")
