"""A step (forward and backward) of our model against upstream's GPTModel with plain RoPE.

Same weights, same packed batches, same process, taking turns. Without Transformer Engine upstream has no
attention for packed documents: there both models have our torch core attention and norms, and the ratio shows
what the rotary embedding with the switch costs. `step_time_vs_upstream` is for a short and a long segment
together, as mixed windows alternate them; each kind of pack also has its own. Without a GPU, times are
processor time.
"""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

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
    ours, theirs = _models(args)
    theirs.load_state_dict(ours.state_dict())
    length, original = args.length, args.original_length
    packs = {
        "short": [original] * (length // original),
        "long": [length],
        "mixed": [length // 2, *[original] * (length // 2 // original)],
    }
    clock = time.perf_counter if device.has_gpu() else time.process_time
    seconds: dict[str, dict[str, list[float]]] = {}
    losses: dict[str, dict[str, float]] = {}
    for kind, lengths in packs.items():
        steps = {"ours": _step(ours, lengths), "upstream": _step(theirs, lengths)}
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


def _models(args: Namespace) -> tuple[Any, Any]:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.utils import unwrap_model
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.initialize import initialize_megatron

    from megatron_longrope2.device import rendezvous_store
    from megatron_longrope2.model.arguments import model_config, parse_model_arguments
    from megatron_longrope2.rope import make_factors

    with TemporaryDirectory() as folder:
        file = Path(folder) / "factors.json"
        factors = make_factors(
            "ntk",
            rope_base=10000.0,
            rotary_dim=64,
            original_length=args.original_length,
            target_length=args.length,
        )
        factors.save(file)
        with patch.object(sys, "argv", ["benchmark", *_arguments(args), "--rope-factors", str(file)]):
            megatron_args = parse_model_arguments()
    initialize_megatron(allow_no_cuda=True, store=rendezvous_store())
    upstream = gpt_config_from_args(megatron_args)
    upstream.transformer_layer_spec = _upstream_layer_spec
    groups = ProcessGroupCollection.use_mpu_process_groups()
    models = []
    for config in (model_config(megatron_args), upstream):
        builder = config.get_builder_cls()(config)
        chunks = builder.build_distributed_models(pg_collection=groups, wrap_with_ddp=False)
        models.append(unwrap_model(chunks)[0])
    return models[0], models[1]


def _upstream_layer_spec(config: Any, vp_stage: int | None = None) -> Any:
    """Upstream's own spec with Transformer Engine; else ours, with upstream's self-attention in it."""
    from megatron.core.transformer.attention import SelfAttention
    from megatron.training.models.gpt import default_layer_spec

    from megatron_longrope2.model.layer_specs import longrope2_layer_spec

    if config.transformer.transformer_impl != "local":
        return default_layer_spec(config, vp_stage)
    block: Any = longrope2_layer_spec(config, vp_stage)
    block.layer_specs[0].submodules.self_attention.module = SelfAttention
    return block


def _arguments(args: Namespace) -> list[str]:
    return f"""
        --num-layers {args.num_layers} --hidden-size {args.hidden_size} --kv-channels 64
        --num-attention-heads {args.hidden_size // 64} --ffn-hidden-size {args.hidden_size * 3} --swiglu
        --normalization RMSNorm --disable-bias-linear --position-embedding-type rope --rotary-base 10000
        --max-position-embeddings {args.original_length} --seq-length {args.length} --vocab-size 4096
        --tokenizer-type NullTokenizer --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 1
        --train-iters 1 --lr 1e-3 {"--bf16" if args.bf16 else ""}
    """.split()


def _step(model: Any, lengths: list[int]) -> Callable[[], float]:
    """Forward and backward of one pack of documents; returns the mean loss."""
    import torch

    from megatron_longrope2.training.batch import pack_params

    where = torch.cuda.current_device()
    boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    packed = pack_params(boundaries.to(where), max(lengths))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 4096, (1, sum(lengths)), generator=generator).to(where)
    position_ids = torch.cat([torch.arange(n) for n in lengths])[None].to(where)

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(tokens, position_ids, None, labels=tokens, packed_seq_params=packed).mean()
        loss.backward()
        return float(loss.detach())

    return step
