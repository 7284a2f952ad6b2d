"""Time of a training step, from arithmetic and traffic. docs/training.md has the formulas.

The model is not calibrated: its shares of the peak and its bandwidths are assumptions, not measurements.
Floating-point operations are counted as Megatron's `num_floating_point_operations` does (the tests compare),
plus what recomputation repeats. Times are sums of what cannot overlap.
"""

from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter

import numpy as np

from megatron_longrope2.data.dealing import deal
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.planning.layout import Layout
from megatron_longrope2.planning.memory import BF16, FLOAT32
from megatron_longrope2.planning.settings import GpuName, PlanSettings

# Number of simulated global batches: a rank's windows come in random order through its pipeline.
DRAWS = 10

# A pass of the pipeline: its stage, whether it is the forward one, its micro-batch.
Pass = tuple[int, bool, int]


@dataclass(frozen=True)
class Gpu:
    """What a GPU is assumed to do in practice.

    Attributes:
        peak: dense bf16 operations a second.
        linear, attention: shares of the peak that matrix products and flash attention reach.
        node_bandwidth, network_bandwidth: bytes per second and direction of one GPU, inside a node and
            between nodes.
    """

    peak: float
    linear: float
    attention: float
    node_bandwidth: float
    network_bandwidth: float


GPUS: dict[GpuName, Gpu] = {
    "a100": Gpu(312e12, 0.65, 0.55, 240e9, 20e9),
    "h100": Gpu(989e12, 0.60, 0.50, 360e9, 40e9),
}


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step.

    Attributes:
        linear, attention: arithmetic.
        tensor, context, data: traffic of each kind of parallelism that is not hidden behind arithmetic.
        imbalance: waiting for the data-parallel rank that has the most long segments.
        bubble: idle pipeline stages, uneven micro-batches included.
    """

    linear: float
    attention: float
    tensor: float
    context: float
    data: float
    imbalance: float
    bubble: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(vars(self).values())


def linear_operations(model: ModelDims, tokens: float) -> float:
    """Forward and backward through all matrices that tokens pass, output layer included."""
    layer = model.attention_parameters + model.mlp_parameters
    return 6 * tokens * (model.num_layers * layer + model.embedding_parameters)


def attention_operations(model: ModelDims, squared_lengths: float) -> float:
    """Forward and backward of causal attention; `squared_lengths` is the sum over spans of tokens squared."""
    return 6 * squared_lengths * model.query_size * model.num_layers


def step_time(model: ModelDims, layout: Layout, settings: PlanSettings) -> Step:
    """Time of a step whose long segments are one span each and whose short ones hold spans of full length."""
    short_span = min(model.original_length, settings.length)
    long = _micro_batch(model, layout, settings, settings.length)
    short = _micro_batch(model, layout, settings, short_span)
    batch, share = settings.global_batch_size, settings.long_share
    mean = {name: batch / layout.data * (share * long[name] + (1 - share) * short[name]) for name in long}
    costs = np.full(batch, sum(short.values()))
    costs[: round(batch * share)] = sum(long.values())
    busiest, longest = schedule(costs, layout.data, layout.pipeline)
    # Gradients are scattered in float32, parameters gathered in bf16; taken as not overlapped.
    ranks = layout.data * layout.context
    parameters = model.parameters / (layout.tensor * layout.pipeline)
    traffic = (FLOAT32 + BF16) * parameters * (ranks - 1) / ranks
    return Step(
        **mean,
        data=traffic / GPUS[settings.gpu].network_bandwidth,
        imbalance=max(0.0, busiest - sum(mean.values())),
        bubble=longest - busiest,
    )


def schedule(costs: np.ndarray, ranks: int, stages: int) -> tuple[float, float]:
    """Deal micro-batches out as training does, and run them one-forward-one-backward on every rank.

    Args:
        costs: seconds of each micro-batch of the global batch on one pipeline stage.
        ranks, stages: data-parallel ranks and pipeline stages.

    Returns:
        Arithmetic of the busiest rank, and the time until the last rank is done: means over random orders of
        the global batch, seconds.
    """
    rng = np.random.default_rng(0)
    busiest, longest = [], []
    for _ in range(DRAWS):
        batch = rng.permutation(costs)
        dealt = batch[deal(batch.tolist(), ranks)].reshape(-1, ranks).T
        busiest.append(dealt.sum(1).max())
        longest.append(max(_one_forward_one_backward(rank.tolist(), stages) for rank in dealt))
    return float(np.mean(busiest)), float(np.mean(longest))


def _one_forward_one_backward(costs: list[float], stages: int) -> float:
    """Time of Megatron's schedule without interleaving; a backward pass takes twice its forward pass."""
    if stages == 1:
        return sum(costs)
    done: dict[Pass, float] = {}
    for step, awaited in _passes(len(costs), stages):
        _, forward, i = step
        ready = max((done[one] for one in awaited), default=0.0)
        done[step] = ready + costs[i] * (1 if forward else 2) / 3
    return max(done.values())


@cache
def _passes(count: int, stages: int) -> list[tuple[Pass, list[Pass]]]:
    """All passes of `count` micro-batches with those that each waits for, which come before it."""
    awaited: dict[Pass, list[Pass]] = {}
    for stage in range(stages):
        ahead = min(stages - 1 - stage, count)
        order = [(True, i) for i in range(ahead)]
        for i in range(count):
            if ahead + i < count:
                order.append((True, ahead + i))
            order.append((False, i))
        for place, (forward, i) in enumerate(order):
            neighbour = stage - 1 if forward else stage + 1
            received = [(neighbour, forward, i)] if 0 <= neighbour < stages else []
            awaited[stage, forward, i] = received + [(stage, *one) for one in order[:place][-1:]]
    return [(step, awaited[step]) for step in TopologicalSorter(awaited).static_order()]


def _micro_batch(model: ModelDims, layout: Layout, settings: PlanSettings, span: int) -> dict[str, float]:
    """Seconds that a segment of spans of this many tokens takes on one pipeline stage."""
    gpu, length = GPUS[settings.gpu], settings.length
    share = layout.tensor * layout.context * layout.pipeline
    linear = linear_operations(model, length)
    attention = attention_operations(model, length * span)
    layer = model.attention_parameters + model.mlp_parameters
    again = {"none": 0, "mlp": model.mlp_parameters, "full": layer}[layout.recompute]
    linear += 2 * length * model.num_layers * again
    # Flash attention computes the scores again in its backward pass: 7 products where 6 count.
    attention *= 7 / 6 + (1 / 3 if layout.recompute == "full" else 0)
    attention_time = attention / share / (gpu.peak * gpu.attention)
    tokens = length / layout.context
    layers = model.num_layers / layout.pipeline

    # Gathers and scatters of a layer's sequence: 4 forward, 6 backward (inputs are gathered again).
    passes = 10 + (4 if layout.recompute == "full" else 0)
    sequence = BF16 * tokens * model.hidden_size * (layout.tensor - 1) / layout.tensor
    tensor_time = layers * passes * sequence / gpu.node_bandwidth

    # Keys and values go round the ring forward, and with their gradients backward, behind the arithmetic.
    inside = layout.tensor * layout.context <= settings.gpus_per_node
    bandwidth = gpu.node_bandwidth if inside else gpu.network_bandwidth
    rounds = (layout.context - 1) * (3 + (1 if layout.recompute == "full" else 0))
    ring = layers * rounds * 2 * BF16 * tokens * model.key_value_size / layout.tensor / bandwidth
    return {
        "linear": linear / share / (gpu.peak * gpu.linear),
        "attention": attention_time,
        "tensor": tensor_time,
        "context": max(0.0, ring - attention_time),
    }
