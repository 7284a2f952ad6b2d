"""Factors as text tables: one set dimension by dimension, several sets side by side."""

from collections.abc import Mapping

from megatron_longrope2.rope.factors import RopeFactors
from megatron_longrope2.rope.frequencies import periods
from megatron_longrope2.tables import text_table


def summary(factors: RopeFactors) -> str:
    """What the set is for and how it stands to the OOD bound: a few lines."""
    attention, outside = factors.attention_factor, factors.ood_dims()
    critical = "none" if factors.critical_dim is None else factors.critical_dim
    out = f"{len(outside)} dimensions, {outside[0]} to {outside[-1]}" if outside else "no dimension"
    return (
        f"method {factors.method}: {factors.original_length} -> {factors.target_length} tokens "
        f"(scale {factors.scale:g})\n"
        f"rope base {factors.rope_base:g}, rotary dimension {factors.rotary_dim} "
        f"({factors.rotary_dim // 2} angles), "
        f"attention factor {attention.short:g} short, {attention.long:g} long\n"
        f"critical dimension: {factors.theoretical_critical_dim} in theory, these factors: {critical}\n"
        f"out of distribution at {factors.target_length} tokens: {out}"
    )


def factor_table(factors: RopeFactors) -> str:
    """Every dimension: period, full periods in the original window, long factor, rescaled period, in or out.

    "out" means that positions up to the target reach angles that training on the original window never
    showed: a dimension without a full period there whose factor is below the scale.
    """
    outside = set(factors.ood_dims())
    notes = {"critical": factors.critical_dim, "theoretical critical": factors.theoretical_critical_dim}
    dims = zip(periods(factors.rope_base, factors.rotary_dim), factors.long_factor, strict=True)
    rows = [
        (
            i,
            f"{period:.2f}",
            f"{factors.original_length / period:.3f}",
            f"{factor:.4f}",
            f"{period * factor:.2f}",
            "out" if i in outside else "in",
            ", ".join(note for note, dim in notes.items() if dim == i),
        )
        for i, (period, factor) in enumerate(dims)
    ]
    return text_table(("dim", "period", "periods", "factor", "rescaled", "range", ""), rows, left=0)


def comparison_table(sets: Mapping[str, RopeFactors]) -> str:
    """The long factors of several sets, a column each, below what they are for."""
    held = sets.values()
    rows = [
        ("method", *(f.method for f in held)),
        ("original", *(f.original_length for f in held)),
        ("target", *(f.target_length for f in held)),
        ("scale", *(f"{f.scale:g}" for f in held)),
        ("attention", *(f"{f.attention_factor.short:.4g}/{f.attention_factor.long:.4g}" for f in held)),
        ("critical", *("-" if f.critical_dim is None else f.critical_dim for f in held)),
        ("out dims", *(len(f.ood_dims()) for f in held)),
    ]
    for i in range(max(f.rotary_dim for f in held) // 2):
        rows.append((str(i), *(f"{f.long_factor[i]:.4f}" if 2 * i < f.rotary_dim else "" for f in held)))
    return text_table(("", *sets), rows)
