"""A step (forward and backward) of our model against upstream's GPTModel with plain RoPE.

Same weights, same packed batches, same process, taking turns. Without Transformer Engine upstream has no
attention for packed documents: there both models have our torch core attention and norms, and the ratio shows
what the rotary embedding with the switch costs. `step_time_vs_upstream` is for a short and a long segment
together, as mixed windows alternate them; each kind of pack also has its own. Without a GPU, times are
processor time.
"""

import time
from argparse import ArgumentParser, Namespace

from megatron_longrope2.benchmarks import Measurement, alternate


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this benchmark."""
    add = parser.add_argument
    add("--length", type=int, default=2048, metavar="TOKENS", help="tokens of a segment")
    add("--original-length", type=int, default=256, metavar="TOKENS", help="pre-trained window")
    add("--num-layers", type=int, default=4, metavar="N", help="layers")
    add("--hidden-size", type=int, default=256, metavar="N", help="hidden size; heads are 64 wide")
    add("--bf16", action="store_true", help="train in bf16 instead of float32")
    add("--repeats", type=int, default=15, metavar="N", help="measurements of each; the fastest counts")


def measure(args: Namespace) -> Measurement:
    """Build both models and time them on short, long and mixed packs."""
    from megatron_longrope2 import device

    device.install()
    from megatron_longrope2.benchmarks import _models
    from megatron_longrope2.model.dims import ModelDims

    length, original = args.length, args.original_length
    heads = args.hidden_size // 64
    shape = ModelDims(
        name="benchmark",
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.hidden_size * 3,
        num_attention_heads=heads,
        num_query_groups=heads,
        kv_channels=64,
        vocab_size=4096,
        original_length=original,
        tied=True,
    )
    megatron_args = _models.start_megatron(shape, length, bf16=args.bf16)
    ours, theirs = _models.our_model(megatron_args), _models.upstream_model(megatron_args)
    theirs.load_state_dict(ours.state_dict())
    packs = {
        "short": [original] * (length // original),
        "long": [length],
        "mixed": [length // 2, *[original] * (length // 2 // original)],
    }
    clock = time.perf_counter if device.has_gpu() else time.process_time
    seconds: dict[str, dict[str, list[float]]] = {}
    losses: dict[str, dict[str, float]] = {}
    for kind, lengths in packs.items():
        models = {"ours": ours, "upstream": theirs}
        steps = {
            name: _models.training_step(model, lengths, shape.vocab_size) for name, model in models.items()
        }
        losses[kind] = {name: step() for name, step in steps.items()}
        seconds[kind] = alternate(steps, args.repeats, clock)
    fastest = {kind: {name: min(values) for name, values in times.items()} for kind, times in seconds.items()}
    both = {name: fastest["short"][name] + fastest["long"][name] for name in ("ours", "upstream")}
    return Measurement(
        settings={
            **{name: getattr(args, name) for name in ("length", "original_length", "num_layers")},
            **{name: getattr(args, name) for name in ("hidden_size", "bf16", "repeats")},
        },
        ratios={
            "step_time_vs_upstream": both["ours"] / both["upstream"],
            **{
                f"step_time_vs_upstream_{kind}": times["ours"] / times["upstream"]
                for kind, times in fastest.items()
            },
        },
        # The short window is plain RoPE: there both models must give one loss.
        measured={"seconds": seconds, "losses": losses},
    )
