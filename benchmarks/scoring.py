"""Time one candidate of the factor search, a needle scored, against a forward pass without logits.

The model has random weights in bf16. Every evaluation has other factors, as in a search, so that their angle
table is part of it. `evaluation_vs_forward_LENGTH` is for the search as it is, whose last layer works for the
scored tokens only; `evaluation_vs_forward_whole_LENGTH` has the last layer whole, as the ratio would be in a
model of very many layers. What pruning saves depends on the losses of a trained model: `search` measures it.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from cyclopts import Parameter
from cyclopts.types import PositiveInt

from benchmarks.measuring import Measurement, in_turns
from benchmarks.models import our_model, start_megatron
from benchmarks.throughput import label
from megatron_longrope2.model.arguments import factors_of
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.planning.model import load_dims
from megatron_longrope2.rope import make_factors
from megatron_longrope2.scoring.megatron import MegatronScorer
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.search.space import SearchSpace

CANDIDATES = 8  # that take turns
ANSWER = 7  # scored tokens of a sample, the last ones: digits of a needle's number


@Parameter(name="*")
@dataclass(frozen=True)
class Settings:
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


def measure(settings: Settings) -> Measurement:
    """Time evaluations and plain forward passes in turns.

    Raises:
        InputError: an unknown model, or a length that is not above its original one.
    """
    dims, length = load_dims(settings.model), settings.length
    dims = replace(dims, num_layers=settings.num_layers or dims.num_layers)
    args = start_megatron(dims, length, bf16=True)
    model = our_model(args).eval().requires_grad_(False)
    loaded = LoadedModel([model], args, factors_of(args))
    space = SearchSpace(make_factors("none", **loaded.factors.facts))
    drawn = space.initial_population(CANDIDATES, 0.3, (), np.random.default_rng(0))
    turns = itertools.cycle([space.to_factors(one, "candidate", {}) for one in drawn])
    drawn_tokens = torch.randint(0, dims.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    sample = Sample(drawn_tokens, torch.arange(length) >= length - ANSWER)
    scorer, whole = MegatronScorer(loaded), MegatronScorer(loaded, restrict_last_layer=False)
    tokens = sample.tokens[None].to(torch.cuda.current_device())
    positions = torch.arange(length, device=tokens.device)[None]

    @torch.no_grad()
    def forward() -> None:
        model(tokens, positions, None, output_processor=lambda *, hidden_states, **_: hidden_states)

    actions = {
        "evaluation": lambda: scorer([sample], [next(turns)]),
        "evaluation, last layer whole": lambda: whole([sample], [next(turns)]),
        "forward": forward,
    }
    in_turns(actions, 1)
    torch.cuda.reset_peak_memory_stats()
    seconds = in_turns(actions, settings.repeats)
    peak = torch.cuda.max_memory_allocated()
    fastest = {name: min(times) for name, times in seconds.items()}
    forward_seconds, name = fastest["forward"], label(length)
    return Measurement(
        ratios={
            f"evaluation_vs_forward_{name}": fastest["evaluation"] / forward_seconds,
            f"evaluation_vs_forward_whole_{name}": fastest["evaluation, last layer whole"] / forward_seconds,
        },
        measured={
            "model": vars(dims),
            "transformer_impl": args.transformer_impl,
            "seconds": seconds,
            "seconds_per_layer": fastest["evaluation"] / dims.num_layers,
            "peak_memory_bytes": peak,
        },
    )
