"""Factors as text tables: one set dimension by dimension, several sets side by side."""

from collections.abc import Mapping, Sequence

from megatron_longrope2.rope.factors import RopeFactors
from megatron_longrope2.rope.frequencies import periods


def summary(factors: RopeFactors) -> str:
    """What the set is for and how it stands to the OOD bound: a few lines."""
    attention, half = factors.attention_factor, factors.rotary_dim // 2
    critical = "none" if factors.critical_dim is None else str(factors.critical_dim)
    outside = factors.ood_dims()
    return "\n".join(
        [
            f"method {factors.method}: {factors.original_length} -> {factors.target_length} tokens "
            f"(scale {factors.scale:g})",
            f"rope base {factors.rope_base:g}, rotary dimension {factors.rotary_dim} ({half} angles), "
            f"attention factor {attention.short:g} short, {attention.long:g} long",
            f"critical dimension: {factors.theoretical_critical_dim} in theory, these factors: {critical}",
            f"out of distribution at {factors.target_length} tokens: "
            + (f"{len(outside)} dimensions, {outside[0]} to {outside[-1]}" if outside else "no dimension"),
        ]
    )


def factor_table(factors: RopeFactors) -> str:
    """Every dimension: period, full periods in the original window, long factor, rescaled period, in or out.

    "out" means that positions up to the target reach angles that training on the original window never
    showed: a dimension without a full period there whose factor is below the scale.
    """
    outside = set(factors.ood_dims())
    rows: list[Sequence[str]] = [("dim", "period", "periods", "factor", "rescaled", "range", "")]
    for i, period in enumerate(periods(factors.rope_base, factors.rotary_dim).tolist()):
        factor = factors.long_factor[i]
        notes = []
        if i == factors.critical_dim:
            notes.append("critical")
        if i == factors.theoretical_critical_dim:
            notes.append("theoretical critical")
        rows.append(
            (
                str(i),
                f"{period:.2f}",
                f"{factors.original_length / period:.3f}",
                f"{factor:.4f}",
                f"{period * factor:.2f}",
                "out" if i in outside else "in",
                ", ".join(notes),
            )
        )
    return _table(rows)


def comparison_table(sets: Mapping[str, RopeFactors]) -> str:
    """The long factors of several sets, a column each, below what they are for."""

    def row(name: str, values: Sequence[str]) -> Sequence[str]:
        return (name, *values)

    held = list(sets.values())
    rows = [
        row("", list(sets)),
        row("method", [f.method for f in held]),
        row("original", [str(f.original_length) for f in held]),
        row("target", [str(f.target_length) for f in held]),
        row("scale", [f"{f.scale:g}" for f in held]),
        row("attention", [f"{f.attention_factor.short:.4g}/{f.attention_factor.long:.4g}" for f in held]),
        row("critical", ["-" if f.critical_dim is None else str(f.critical_dim) for f in held]),
        row("out dims", [str(len(f.ood_dims())) for f in held]),
    ]
    for i in range(max(f.rotary_dim for f in held) // 2):
        rows.append(row(str(i), [f"{f.long_factor[i]:.4f}" if i < len(f.long_factor) else "" for f in held]))
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
