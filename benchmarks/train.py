"""Time a step (forward and backward) of our model against upstream's GPTModel with plain RoPE.

Both have the same weights and the same packed batches, and take turns in one process. Without Transformer
Engine upstream has no attention for packed documents: there both models have our torch core attention and
norms, and the ratio shows what the rotary embedding with the switch costs. `step_time_vs_upstream` is for a
short and a long segment together, as mixed windows alternate them; each kind of pack also has its own.
Without a GPU, times are processor time.
"""

import time
from dataclasses import dataclass

from cyclopts.types import PositiveInt

from benchmarks.measuring import Measurement, Output, in_turns
from benchmarks.models import our_model, start, training_step, upstream_model
from megatron_longrope2 import device
from megatron_longrope2.model.dims import ModelDims


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Sizes and repetitions.

    Attributes:
        length: The number of tokens of a segment.
        original_length: The number of tokens of the short window.
        num_layers: The number of layers.
        hidden_size: The hidden size; heads are 64 wide.
        bf16: Train in bf16 instead of float32.
        repeats: How often each is measured; the fastest counts.
    """

    length: PositiveInt = 2048
    original_length: PositiveInt = 256
    num_layers: PositiveInt = 4
    hidden_size: PositiveInt = 256
    bf16: bool = False
    repeats: PositiveInt = 15


def measure(*, settings: Settings) -> Measurement:
    """Build both models and time them on short, long and mixed packs."""
    length, original, hidden = settings.length, settings.original_length, settings.hidden_size
    heads = hidden // 64
    dims = ModelDims(
        "benchmark", settings.num_layers, hidden, 3 * hidden, heads, heads, 64, 4096, original, tied=True
    )
    args = start(dims, length, bf16=settings.bf16)
    models = {"ours": our_model(args), "upstream": upstream_model(args)}
    models["upstream"].load_state_dict(models["ours"].state_dict())
    packs = {
        "short": [original] * (length // original),
        "long": [length],
        "mixed": [length // 2, *[original] * (length // 2 // original)],
    }
    clock = time.perf_counter if device.has_gpu() else time.process_time
    seconds, losses = {}, {}
    for kind, lengths in packs.items():
        steps = {name: training_step(model, lengths, dims.vocab_size) for name, model in models.items()}
        losses[kind] = {name: step() for name, step in steps.items()}
        seconds[kind] = in_turns(steps, settings.repeats, clock)
    ours, upstream = (seconds["short"][name] + seconds["long"][name] for name in models)
    ratios = {f"step_time_vs_upstream_{kind}": s["ours"] / s["upstream"] for kind, s in seconds.items()}
    return Measurement(
        settings,
        ratios={"step_time_vs_upstream": ours / upstream, **ratios},
        # The short window is plain RoPE: there both models must give one loss.
        measured={"seconds": seconds, "losses": losses},
    )
