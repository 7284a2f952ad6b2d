"""What a rehearsal found: a verdict in a line, a table, JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from megatron_longrope2.planning.plan import USABLE
from megatron_longrope2.rehearsal.result import GIB, Category, Rehearsal
from megatron_longrope2.rehearsal.settings import MachineSettings
from megatron_longrope2.tables import text_table

CATEGORIES: tuple[Category, ...] = get_args(Category)

# Kinds of operations that are printed; JSON has all.
KINDS = 12

# What to change where a category is what does not fit.
_REMEDIES: dict[str, str] = {
    "weights": "use a larger --tensor-model-parallel-size or --pipeline-model-parallel-size",
    "gradients": "use a larger --tensor-model-parallel-size or --pipeline-model-parallel-size",
    "optimizer states": "use --use-distributed-optimizer, or more GPUs",
    "keys and values": "use a smaller --batch-size or a larger --tensor-model-parallel-size",
    "activations": "use a larger --context-parallel-size, or --recompute-granularity",
    "temporaries": "use a larger --context-parallel-size or --tensor-model-parallel-size",
}


def fits(rehearsals: Sequence[Rehearsal], machines: MachineSettings) -> bool:
    """Whether every rank stays below the share of a GPU's memory that may be used."""
    return max(one.peak for one in rehearsals) <= USABLE * machines.memory * GIB


def verdict(rehearsals: Sequence[Rehearsal], machines: MachineSettings) -> str:
    """One line: it fits, or what does not and what to change."""
    worst = max(rehearsals, key=lambda one: one.peak)
    what = f"{worst.stage}, rank {worst.rank} ({worst.role})"
    size = f"{_gib(worst.peak)} of {machines.memory:g} GiB"
    if fits(rehearsals, machines):
        return f"fits: the fullest GPU has {size} in use, in {what}"
    largest = max(worst.categories, key=lambda name: worst.categories[name])
    return (
        f"does not fit: {what} needs {size}, of which {USABLE:.0%} may be used; {largest} take "
        f"{_gib(worst.categories[largest])} GiB: {_REMEDIES[largest]}"
    )


def text(rehearsals: Sequence[Rehearsal], machines: MachineSettings) -> str:
    """A table of the ranks, the details of each stage's fullest one, and the verdict."""
    rows = [
        [
            one.stage,
            one.rank,
            one.role,
            _gib(one.peak),
            *(_gib(one.categories.get(name, 0)) for name in CATEGORIES),
            "-".join(map(str, sorted(set(one.launches)))),
        ]
        for one in rehearsals
    ]
    header = ["stage", "rank", "", "GiB", *CATEGORIES, "operations a layer"]
    fullest: dict[str, Rehearsal] = {}
    for one in sorted(rehearsals, key=lambda one: one.peak):
        fullest[one.stage] = one
    details = [_details(fullest[name]) for name in dict.fromkeys(one.stage for one in rehearsals)]
    replaced = {what: by for one in rehearsals for what, by in one.stand_ins.items()}
    lines = ["What cannot be run without a GPU, and what was run for it:"]
    lines += [f"  {what}: {by}" for what, by in replaced.items()]
    table = text_table(header, rows, left=3)
    return "\n\n".join([table, *details, "\n".join(lines), verdict(rehearsals, machines)])


def to_dict(rehearsals: Sequence[Rehearsal], machines: MachineSettings) -> dict[str, Any]:
    """JSON-ready: the verdict, and all that is known of each rank; sizes in bytes."""
    return {
        "fits": fits(rehearsals, machines),
        "verdict": verdict(rehearsals, machines),
        "machines": asdict(machines),
        "ranks": [asdict(one) for one in rehearsals],
    }


def _details(one: Rehearsal) -> str:
    lines = [f"{one.stage}, rank {one.rank}: the peak is reached by {one.peak_operation}"]
    tensors = [
        [
            _gib(entry["bytes"]),
            f"{entry['count']} x" if entry["count"] > 1 else "",
            " x ".join(map(str, entry["shape"])),
            entry["dtype"],
            entry["category"],
            entry["where"],
        ]
        for entry in one.largest
    ]
    header = ["GiB", "", "shape", "type", "for", "made at"]
    lines.append(text_table(header, tensors, left=0))
    sent: dict[tuple[str, str], list[int]] = {}
    for entry in one.traffic:
        sizes = sent.setdefault((entry["collective"], entry["group"]), [0, 0])
        sizes[entry["between_nodes"]] += entry["bytes"]
    traffic = [
        [*names, _gib(inside), _gib(outside)]
        for names, (inside, outside) in sent.items()
        if inside + outside > GIB / 1000
    ]
    if traffic:
        header = ["collective", "group", "GiB sent inside a node", "between nodes"]
        lines.append(text_table(header, traffic, left=2))
    kinds = list(one.operations.items())
    total = sum(one.operations.values())
    listed = ", ".join(f"{name} {times}" for name, times in kinds[:KINDS])
    lines.append(f"operations: {total}, of {len(kinds)} kinds: {listed}" + (", ..." if kinds[KINDS:] else ""))
    in_layers = [entry for entry in one.read_backs if entry["in_layer"]]
    lines.append(f"numbers read back from the device in layers: {'' if in_layers else 'none'}")
    lines += [f"  {entry['times']} x {entry['line']}" for entry in in_layers]
    lines.append("elsewhere:")
    lines += [f"  {entry['times']} x {entry['line']}" for entry in one.read_backs if not entry["in_layer"]]
    return "\n".join(lines)


def _gib(size: int) -> str:
    """A size in GiB, with the digits that tell it from others."""
    return "-" if not size else f"{size / GIB:.1f}" if size >= GIB else f"{size / GIB:.3f}"
