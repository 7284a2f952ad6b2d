"""Memory against Megatron's own theoretical figures; tests/rehearsal compares it with rehearsals."""

from dataclasses import replace

import pytest
from megatron.training.theoretical_memory_usage import compute_weight_and_optimizer_memory

from megatron_longrope2.planning.layout import Layout
from megatron_longrope2.planning.memory import (
    GIB,
    layer_activations,
    peak_memory,
    weights_and_optimizer,
    working_activations,
)
from megatron_longrope2.planning.settings import PRESETS
from tests.planning.upstream import upstream_args

LLAMA, PHI = PRESETS["llama3-8b"], PRESETS["phi3-mini"]
LENGTH = 131072


@pytest.mark.parametrize("model", [*PRESETS.values(), replace(LLAMA, tied=True)])
@pytest.mark.parametrize("tensor", [1, 8])
@pytest.mark.parametrize("pipeline", [1, 4])
@pytest.mark.parametrize("data", [1, 8])
def test_weights_and_optimizer_are_upstreams(model, tensor: int, pipeline: int, data: int) -> None:
    layout = Layout(tensor, 1, pipeline, data, "none")
    expected = compute_weight_and_optimizer_memory(upstream_args(model, layout, LENGTH))
    assert weights_and_optimizer(model, layout) == pytest.approx(expected, rel=1e-12)


def test_context_parallel_ranks_share_the_optimizer_like_data_parallel_ones() -> None:
    # Megatron's distributed optimizer works in the group of both; upstream's figure leaves that out.
    assert weights_and_optimizer(LLAMA, Layout(1, 8, 1, 1, "none")) == weights_and_optimizer(
        LLAMA, Layout(1, 1, 1, 8, "none")
    )


def test_llama_layer_by_hand() -> None:
    # 4 KiB hidden x bf16 = 8 KiB a vector: input, normed, residual, normed; queries, rotated queries and
    # attention's output the same size; keys, values and rotated keys a quarter each; 3 x 28 KiB in the MLP;
    # 32 float32 log-sums.
    expected = 8192 * (4 + 3 + 3 / 4) + 3 * 28672 + 32 * 4
    assert layer_activations(LLAMA, Layout(1, 1, 1, 1, "none"), 1) == expected


@pytest.mark.parametrize(("axis", "share"), [("tensor", 2), ("context", 2)])
def test_tensor_and_context_parallelism_halve_activations(axis: str, share: int) -> None:
    one = Layout(1, 1, 1, 1, "none")
    two = replace(one, **{axis: 2})
    assert layer_activations(LLAMA, two, LENGTH) * share == layer_activations(LLAMA, one, LENGTH)


def test_recomputation_trades_kept_for_working_memory() -> None:
    none, mlp, full = (Layout(4, 8, 1, 2, recompute) for recompute in ("none", "mlp", "full"))
    kept = [layer_activations(LLAMA, layout, LENGTH) for layout in (none, mlp, full)]
    working = [working_activations(LLAMA, layout, LENGTH) for layout in (none, mlp, full)]
    assert kept == sorted(kept, reverse=True)
    assert working == sorted(working)
    # What is not kept is there while its layer is in the backward pass.
    assert kept[0] + working[0] == pytest.approx(kept[1] + working[1]) == pytest.approx(kept[2] + working[2])


def test_first_stage_keeps_a_micro_batch_a_stage_and_last_the_logits() -> None:
    layout = Layout(4, 8, 4, 1, "none")
    many = peak_memory(LLAMA, layout, LENGTH, 64)
    assert many.logits == 0
    assert many.activations > 3 * 8 * layer_activations(LLAMA, layout, LENGTH)
    full = peak_memory(LLAMA, replace(layout, recompute="full"), LENGTH, 64)
    assert full.logits == 6 * (LENGTH / 8) * 128256 / 4


def test_llama_on_64_gpus_fits() -> None:
    assert 30 * GIB < peak_memory(LLAMA, Layout(4, 8, 1, 2, "none"), LENGTH, 32).total < 40 * GIB
