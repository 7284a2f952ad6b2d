"""The pictures hold the numbers; what cannot be written is refused whole."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import load_factors, make_factors
from megatron_longrope2.rope.plots import plot_cosine, plot_factors

LLAMA3 = load_factors("llama3-8b-128k")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that were saved, kept open to be looked at."""
    figures: list[Figure] = []
    monkeypatch.setattr(plt, "close", figures.append)
    yield figures
    monkeypatch.undo()
    plt.close("all")


def test_plot_factors(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "deep" / "factors.png"
    yarn = make_factors("yarn", rope_base=500000, rotary_dim=128, original_length=8192, target_length=131072)
    plot_factors({"published": LLAMA3, "yarn": yarn}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx(LLAMA3.long_factor)
    assert axes.lines[1].get_ydata() == pytest.approx(yarn.long_factor)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:2] == ["published", "yarn"]
    assert "out of distribution: from dimension 35 on, below 16" in labels


def test_plot_cosine_marks_the_unseen_part(tmp_path: Path, drawn: list[Figure]) -> None:
    """Dimension 40: period 22911 tokens, 8192 of them seen: 64.2 % never."""
    plot_cosine(LLAMA3, 40, tmp_path / "cosine.png")
    curve, reach = drawn[0].axes
    labels = [text.get_text() for text in curve.get_legend().get_texts()]
    assert labels == ["seen in training", "never seen in training: 64.2% of the period"]
    assert curve.get_xlim() == pytest.approx((0, 22910.58), abs=0.01)
    widths = [patch.get_width() for patch in reach.patches if patch.get_height() == 0.6]  # type: ignore[attr-defined]
    assert widths == pytest.approx([8192, 22910.58, 131072 / 22.73], abs=0.01)
    seen = curve.lines[1]
    assert np.max(seen.get_xdata()) == 8192


def test_plot_cosine_of_a_dimension_fully_seen(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_cosine(LLAMA3, 10, tmp_path / "cosine.svg")
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert labels == ["seen in training"]


def test_refuses_a_dimension_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dimension 64: outside \[0, 63\]"):
        plot_cosine(LLAMA3, 64, tmp_path / "cosine.png")


def test_refuses_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"factors.xyz: Format 'xyz' is not supported .*png"):
        plot_factors({"published": LLAMA3}, tmp_path / "factors.xyz")
    assert list(tmp_path.iterdir()) == []
