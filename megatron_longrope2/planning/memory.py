"""Memory of a GPU in bf16 training with float32 master weights and Adam. docs/training.md has the formulas.

Weights and optimizer follow `megatron.training.theoretical_memory_usage`, whose figures the tests compare
with; activations are counted tensor by tensor, because upstream's count knows neither gated MLPs, grouped
queries, context parallelism nor recomputation. Rehearsals say which tensors there are (docs/rehearsal.md).
"""

from dataclasses import dataclass

from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.planning.layout import Layout

GIB = 2**30
BF16, FLOAT32 = 2, 4

# Bytes per logit: the float32 softmax that the loss keeps, and itself or, later, its gradient.
LOGIT = FLOAT32 + BF16

# Bytes per parameter on every rank: itself and its float32 gradient.
PARAMETER = BF16 + FLOAT32

# Bytes per parameter that the distributed optimizer shares out: the master copy and Adam's two moments.
OPTIMIZER = 3 * FLOAT32


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU.

    Attributes:
        activations: all that is kept for the backward pass, and what a layer's backward pass adds.
        logits: of the last stage; what a layer adds is gone while they are there, and is not counted twice.
    """

    weights_and_optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it, without what CUDA, NCCL and fragmentation take."""
        return self.weights_and_optimizer + self.activations + self.logits

    def scaled(self, factor: float) -> "Memory":
        """The same with activations and logits multiplied by a factor."""
        return Memory(self.weights_and_optimizer, factor * self.activations, factor * self.logits)


def peak_memory(model: ModelDims, layout: Layout, length: int, micro_batches: int) -> Memory:
    """Memory of the fullest pipeline stage: the first (most micro-batches in flight) or the last (logits).

    Args:
        length: tokens of a segment.
        micro_batches: of a global batch on one data-parallel rank.
    """
    first = _stage(model, layout, length, min(layout.pipeline, micro_batches), last=layout.pipeline == 1)
    last = _stage(model, layout, length, 1, last=True)
    return max(first, last, key=lambda memory: memory.total)


def _stage(model: ModelDims, layout: Layout, length: int, in_flight: int, *, last: bool) -> Memory:
    layers = model.num_layers // layout.pipeline
    kept = layers * in_flight * layer_activations(model, layout, length)
    tokens = length / layout.context
    if layout.tensor > 1:
        kept += BF16 * tokens * model.hidden_size  # the buffer into which sequences are gathered
    logits = 0.0
    if last:
        # The last layer's output and its norm's, then the logits.
        kept += 2 * BF16 * tokens * model.hidden_size / layout.tensor
        logits = LOGIT * tokens * model.padded_vocab_size / layout.tensor
    working = working_activations(model, layout, length)
    return Memory(
        weights_and_optimizer=weights_and_optimizer(model, layout),
        activations=kept + max(0.0, working - logits),
        logits=logits,
    )


def weights_and_optimizer(model: ModelDims, layout: Layout) -> float:
    """Bytes on the fullest rank, as upstream's `compute_weight_and_optimizer_memory` counts them.

    There is one difference: the distributed optimizer shards its states over context-parallel ranks too.
    """
    layers = model.num_layers / layout.pipeline
    sharded = layers * (model.attention_parameters + model.mlp_parameters) + model.embedding_parameters
    if layout.pipeline == 1 and not model.tied:
        sharded += model.embedding_parameters
    replicated = (2 * model.num_layers + 1) * model.hidden_size / layout.pipeline
    parameters = sharded / layout.tensor + replicated
    return parameters * (PARAMETER + OPTIMIZER / (layout.data * layout.context))


def layer_activations(model: ModelDims, layout: Layout, length: int) -> float:
    """Bytes that one layer keeps for its backward pass, of one micro-batch."""
    return length / layout.context / layout.tensor * _kept(model)[layout.recompute]


def working_activations(model: ModelDims, layout: Layout, length: int) -> float:
    """Bytes in addition: what a layer's backward pass computes again, and its gradients."""
    tokens = length / layout.context
    kept = _kept(model)
    again = kept["none"] - kept[layout.recompute]
    mlp = 3 * model.ffn_hidden_size + model.hidden_size
    # A ring passes keys, values and their gradients on, while those of the rank before arrive.
    ring = 8 * model.key_value_size if layout.context > 1 else 0
    attention = model.qkv_size + ring
    # Sequence parallelism gathers the gradient of a layer's input.
    gathered = BF16 * model.hidden_size if layout.tensor > 1 else 0
    return tokens * ((again + BF16 * max(mlp, attention)) / layout.tensor + gathered)


def _kept(model: ModelDims) -> dict[str, float]:
    """Bytes per token of one layer, all tensor-parallel ranks together, for each kind of recomputation."""
    hidden, query, key_value = model.hidden_size, model.query_size, model.key_value_size
    # Layer input, normed input, residual; queries, keys and values, of which the values are a part, so that
    # all stay; rotated queries and keys; attention's output and its log-sums.
    attention = BF16 * (3 * hidden + 3 * query + 3 * key_value) + FLOAT32 * model.num_attention_heads
    normed = BF16 * hidden
    # Gate and up projections, their product.
    mlp = BF16 * 3 * model.ffn_hidden_size
    return {"none": attention + normed + mlp, "mlp": attention + normed, "full": BF16 * hidden}
