"""The tables say what the numbers are."""

import dataclasses

from megatron_longrope2.rope import load_factors, make_factors
from megatron_longrope2.rope.tables import comparison_table, factor_table, summary


def test_summary_of_the_published_factors() -> None:
    text = summary(load_factors("llama3-8b-128k"))
    assert "8192 -> 131072 tokens (scale 16)" in text
    assert "35 in theory, these factors: 33" in text
    assert "out of distribution at 131072 tokens: no dimension" in text


def test_summary_names_what_is_out_of_distribution() -> None:
    factors = make_factors("none", rope_base=10000, rotary_dim=96, original_length=2048, target_length=131072)
    assert "17 dimensions, 31 to 47" in summary(factors)
    assert "these factors: none" in summary(factors)


def test_factor_table_row_by_row() -> None:
    """Phi3-mini: P_7 = 24, P_47 = 51861 tokens, d_tcd = 31."""
    factors = make_factors("none", rope_base=10000, rotary_dim=96, original_length=2048, target_length=131072)
    rows = [line.split() for line in factor_table(factors).splitlines()]
    assert rows[0] == ["dim", "period", "periods", "factor", "rescaled", "range"]
    assert len(rows) == 49
    assert rows[8] == ["7", "24.07", "85.078", "1.0000", "24.07", "in"]
    assert rows[48][:2] == ["47", "51861.67"]
    assert [row[5] for row in rows[1:]] == ["in"] * 31 + ["out"] * 17
    assert rows[32][6:] == ["theoretical", "critical"]


def test_factor_table_marks_the_critical_dimension() -> None:
    row = factor_table(load_factors("llama3-8b-128k")).splitlines()[34].split()
    assert (row[0], row[3], row[5:]) == ("33", "21.8100", ["in", "critical"])


def test_comparison_of_sets_of_different_size() -> None:
    small = make_factors("pi", rope_base=10000, rotary_dim=4, original_length=256, target_length=2048)
    sets = {"small": small, "large": load_factors("llama3-8b-128k")}
    rows = [line.split() for line in comparison_table(sets).splitlines()]
    assert rows[0] == ["small", "large"]
    assert ["method", "pi", "longrope2"] in rows
    assert ["critical", "-", "33"] in rows
    assert ["1", "8.0000", "1.0979"] in rows
    assert rows[-1] == ["63", "26.0500"]


def test_comparison_counts_dimensions_out_of_distribution() -> None:
    factors = load_factors("llama3-8b-128k")
    plain = dataclasses.replace(factors, long_factor=(1.0,) * 64)
    assert comparison_table({"a": factors, "b": plain}).splitlines()[7].split() == ["out", "dims", "0", "29"]
