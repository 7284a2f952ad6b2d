"""Operations against Megatron's own count; the schedule's time against what is known of it."""

import numpy as np
import pytest
from megatron.training.training import num_floating_point_operations

from megatron_longrope2.planning.layout import Layout
from megatron_longrope2.planning.settings import PRESETS, PlanSettings
from megatron_longrope2.planning.speed import attention_operations, linear_operations, schedule, step_time
from tests.planning.upstream import upstream_args

LLAMA = PRESETS["llama3-8b"]
RUN = PlanSettings(model="llama3-8b")


@pytest.mark.parametrize("model", PRESETS.values())
def test_operations_are_upstreams(model) -> None:
    tokens, squared = 3 * 131072, 131072**2 + 32 * 8192**2
    args = upstream_args(model, Layout(1, 1, 1, 1, "none"), 131072)
    expected = num_floating_point_operations(args, 3, squared, tokens)
    ours = linear_operations(model, tokens) + attention_operations(model, squared)
    assert ours == pytest.approx(expected, rel=1e-12)


def test_equal_micro_batches_leave_the_known_bubble() -> None:
    # (stages - 1) forward and backward passes of waiting (Narayanan et al. 2021, section 2.2).
    busiest, longest = schedule(np.full(32, 3.0), ranks=2, stages=4)
    assert busiest == pytest.approx(16 * 3)
    assert longest == pytest.approx((16 + 4 - 1) * 3)


def test_uneven_micro_batches_make_pipelines_wait() -> None:
    costs = np.array([1.0, 5.0] * 16)
    even_busiest, even_longest = schedule(np.full(32, 3.0), ranks=2, stages=4)
    busiest, longest = schedule(costs, ranks=2, stages=4)
    assert busiest == even_busiest  # both ranks have eight of each
    assert longest - busiest > even_longest - even_busiest


def test_ranks_wait_where_segments_cannot_be_dealt_evenly() -> None:
    assert schedule(np.array([5.0] * 3 + [1.0] * 5), ranks=4, stages=1) == (6.0, 6.0)
    assert schedule(np.array([5.0] * 3 + [1.0] * 5), ranks=2, stages=1) == (12.0, 12.0)


def test_one_rank_without_stages_only_works() -> None:
    assert schedule(np.array([1.0, 5.0, 2.0]), ranks=1, stages=1) == (8.0, 8.0)


def test_recomputation_costs_arithmetic() -> None:
    times = [step_time(LLAMA, Layout(4, 8, 1, 2, recompute), RUN) for recompute in ("none", "mlp", "full")]
    linear = [time.linear for time in times]
    assert linear == sorted(linear)
    assert linear[2] / linear[0] == pytest.approx(4 / 3, rel=0.03)  # the output layer is not repeated
    assert times[1].attention == times[0].attention < times[2].attention


@pytest.mark.parametrize(
    ("layout", "kind"), [(Layout(8, 1, 1, 8, "none"), "tensor"), (Layout(1, 64, 1, 1, "none"), "context")]
)
def test_traffic_only_where_there_is_a_group(layout: Layout, kind: str) -> None:
    time = step_time(LLAMA, layout, RUN)
    assert getattr(time, kind) > 0
    assert getattr(time, {"tensor": "context", "context": "tensor"}[kind]) == 0
    assert time.bubble == 0
