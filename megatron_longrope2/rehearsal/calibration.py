"""The planner's recommendation, rehearsed; what the formula got wrong corrects all its rows."""

from dataclasses import dataclass

from megatron_longrope2.planning.layout import Layout
from megatron_longrope2.planning.memory import Memory
from megatron_longrope2.planning.plan import Row, plan
from megatron_longrope2.planning.settings import PlanSettings
from megatron_longrope2.rehearsal.rehearse import rehearse
from megatron_longrope2.rehearsal.result import GIB
from megatron_longrope2.rehearsal.settings import Job, MachineSettings, Stage

# Recommendations that are rehearsed at most: each may change the next.
ROUNDS = 3


@dataclass(frozen=True)
class Check:
    """A layout that was rehearsed.

    Attributes:
        formula: bytes of the fullest GPU, as the planner's formula has them.
        rehearsed: the same, as its ranks have them.
        scale: what the formula's activations and logits are multiplied by to give the rehearsal's.
    """

    layout: Layout
    formula: float
    rehearsed: float
    scale: float

    def __str__(self) -> str:
        rehearsed, formula = (f"{size / GIB:.1f} GiB" for size in (self.rehearsed, self.formula))
        return (
            f"{self.layout}: {rehearsed} rehearsed, {formula} by the formula "
            f"({self.formula / self.rehearsed - 1:+.1%}); all rows now have activations x {self.scale:.3f}"
        )


def rehearsed_plan(settings: PlanSettings) -> tuple[list[Row], list[Check]]:
    """Plan, and rehearse what is recommended, until a layout is recommended that was rehearsed.

    Raises:
        InputError: as `plan` and `rehearse`.
    """
    rows = plan(settings)
    checks: list[Check] = []
    while len(checks) < ROUNDS and rows[0].layout not in [check.layout for check in checks]:
        scale = checks[-1].scale if checks else 1.0
        checks.append(check(settings, rows[0].layout, rows[0].memory.scaled(1 / scale)))
        rows = plan(settings, checks[-1].scale)
    return rows, checks


def check(settings: PlanSettings, layout: Layout, memory: Memory) -> Check:
    """Rehearse a layout whose memory the formula has, without corrections.

    Raises:
        InputError: as `rehearse`.
    """
    words = ("train", "--bf16", *layout.arguments().split())
    job = Job((Stage(words, settings.gpus),), settings.model, settings.length, settings.original_length)
    machines = MachineSettings(memory=settings.memory, gpus_per_node=settings.gpus_per_node)
    peak = max(one.peak for one in rehearse(job, machines))
    scale = (peak - memory.weights_and_optimizer) / (memory.activations + memory.logits)
    return Check(layout, memory.total, peak, scale)
