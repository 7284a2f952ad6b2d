"""Time one candidate of the factor search, a needle scored, against a forward pass without logits.

The model has random weights in bf16. Every evaluation has other factors, as in a search, so that their angle
table is part of it; the last layer works for the scored tokens only. What pruning saves depends on the losses
of a trained model: `search` measures it.
"""

import itertools
from dataclasses import dataclass, replace

import torch
from cyclopts.types import PositiveInt

from benchmarks.measuring import Measurement, Output, in_turns, label
from benchmarks.models import our_model, start, tokens_of
from megatron_longrope2.model.arguments import factors_of
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.planning.settings import load_dims
from megatron_longrope2.rope import make_factors
from megatron_longrope2.scoring.megatron import MegatronScorer
from megatron_longrope2.scoring.samples import Sample

ANSWER = 7  # scored tokens of a sample, the last ones: digits of a needle's number


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Model, length and repetitions.

    Attributes:
        model: The sizes of the model: a preset of `longrope2 plan`, a Hugging Face folder or a checkpoint.
        num_layers: The number of layers; by default all of the model's.
        length: The number of tokens of a sample.
        repeats: How often each is measured; the fastest counts.
    """

    model: str = "llama3-8b"
    num_layers: PositiveInt | None = None
    length: PositiveInt = 131072
    repeats: PositiveInt = 2


def measure(*, settings: Settings) -> Measurement:
    """Time evaluations and plain forward passes in turns.

    Raises:
        InputError: an unknown model, or a length that is not above its original one.
    """
    dims, length = load_dims(settings.model), settings.length
    dims = replace(dims, num_layers=settings.num_layers or dims.num_layers)
    args = start(dims, length, bf16=True)
    model, factors = our_model(args).eval().requires_grad_(False), factors_of(args)
    turns = itertools.cycle([make_factors(method, **factors.facts) for method in ("pi", "ntk", "yarn")])
    tokens = tokens_of([length], dims.vocab_size)
    sample = Sample(tokens.cpu(), torch.arange(length) >= length - ANSWER)
    scorer = MegatronScorer(LoadedModel([model], args, factors))
    positions = torch.arange(length, device=tokens.device)[None]

    @torch.no_grad()
    def forward() -> None:
        model(tokens[None], positions, None, output_processor=lambda *, hidden_states, **_: hidden_states)

    actions = {"evaluation": lambda: scorer([sample], [next(turns)]), "forward": forward}
    in_turns(actions, 1)
    torch.cuda.reset_peak_memory_stats()
    seconds = in_turns(actions, settings.repeats)
    return Measurement(
        settings,
        ratios={f"evaluation_vs_forward_{label(length)}": seconds["evaluation"] / seconds["forward"]},
        measured={
            "model": vars(dims),
            "transformer_impl": args.transformer_impl,
            "seconds": seconds,
            "seconds_per_layer": seconds["evaluation"] / dims.num_layers,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
        },
    )
