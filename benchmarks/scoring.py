"""One candidate of the factor search: a needle scored, against a forward pass without logits.

The model has random weights in bf16. Every evaluation has other factors, as in a search, so that their angle
table is part of it. `evaluation_vs_forward_LENGTH` is for the search as it is, whose last layer works for the
scored tokens only; `evaluation_vs_forward_whole_LENGTH` has the last layer whole, as the ratio would be
in a model of very many layers. Pruning is measured on a race of candidates; with random weights, which all
factors suit alike, it saves little: a trained model's search.json tells more.
"""

import itertools
import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import Any

from megatron_longrope2.benchmarks import Measurement, alternate

ANSWER = 7
"""Scored tokens of a sample, the last ones: digits of a needle's number."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this benchmark."""
    add = parser.add_argument
    add("--model", default="llama3-8b", help="shape: a preset, a Hugging Face folder or a checkpoint")
    add("--num-layers", type=int, metavar="N", help="layers; None: all")
    add("--length", type=int, default=131072, metavar="TOKENS", help="of a sample")
    add("--repeats", type=int, default=2, metavar="N", help="measurements of each; the fastest counts")
    add("--candidates", type=int, default=4, metavar="N", help="of the race with pruning")
    add("--samples", type=int, default=2, metavar="N", help="of the race with pruning")


def measure(args: Namespace) -> Measurement:
    """Time evaluations and plain forward passes in turns, then a race of candidates.

    Raises:
        InputError: an unknown model, or a length that is not above its original one.
    """
    from megatron_longrope2 import device

    device.install()
    import torch

    from megatron_longrope2.benchmarks import _models
    from megatron_longrope2.benchmarks.throughput import label
    from megatron_longrope2.model.arguments import factors_of
    from megatron_longrope2.model.loading import LoadedModel
    from megatron_longrope2.planning.model import load_shape
    from megatron_longrope2.search.scoring import ModelScorer

    shape = load_shape(args.model)
    shape = replace(shape, num_layers=args.num_layers or shape.num_layers)
    megatron_args = _models.start_megatron(shape, args.length, bf16=True)
    model = _models.our_model(megatron_args).eval().requires_grad_(False)
    loaded = LoadedModel([model], megatron_args, factors_of(megatron_args))
    candidates = _candidates(loaded.factors, args.candidates)
    samples = _samples(shape.vocab_size, args.length, args.samples)
    turns = itertools.cycle(candidates)
    scorer, whole = ModelScorer(loaded), ModelScorer(loaded, restrict_last_layer=False)
    tokens = samples[0].tokens[None].to(torch.cuda.current_device())
    positions = torch.arange(args.length, device=tokens.device)[None]

    @torch.no_grad()
    def forward() -> None:
        model(tokens, positions, None, output_processor=lambda *, hidden_states, **_: hidden_states)

    actions = {
        "evaluation": lambda: scorer([(next(turns), samples[0])]),
        "evaluation, last layer whole": lambda: whole([(next(turns), samples[0])]),
        "forward": forward,
    }
    alternate(actions, 1)
    torch.cuda.reset_peak_memory_stats()
    seconds = alternate(actions, args.repeats)
    peak = torch.cuda.max_memory_allocated()
    fastest = {name: min(times) for name, times in seconds.items()}
    race = _race(scorer, candidates, samples)
    return Measurement(
        settings={
            "model": args.model,
            "shape": vars(shape),
            **{name: getattr(args, name) for name in ("length", "repeats", "candidates", "samples")},
            "transformer_impl": megatron_args.transformer_impl,
        },
        ratios={
            f"evaluation_vs_forward_{label(args.length)}": fastest["evaluation"] / fastest["forward"],
            f"evaluation_vs_forward_whole_{label(args.length)}": fastest["evaluation, last layer whole"]
            / fastest["forward"],
            "evaluations_with_pruning": race["evaluations"] / (args.candidates * args.samples),
        },
        measured={
            "seconds": seconds,
            "seconds_per_layer": fastest["evaluation"] / shape.num_layers,
            "peak_memory_bytes": peak,
            "race": race,
            "table": [
                {
                    "what": name,
                    "seconds": round(value, 3),
                    "seconds a layer": round(value / shape.num_layers, 4),
                    "tokens/s": round(args.length / value),
                }
                for name, value in fastest.items()
            ],
        },
    )


def _candidates(factors: Any, count: int) -> list[Any]:
    """Members of the first generation of a search."""
    import numpy as np

    from megatron_longrope2.search.space import SearchSpace

    space = SearchSpace(factors.rope_base, factors.rotary_dim, factors.original_length, factors.target_length)
    drawn = space.initial_population(64, 0.3, (), np.random.default_rng(0))[:count]
    return [space.to_factors(one, "candidate", {}) for one in drawn]


def _samples(vocab_size: int, length: int, count: int) -> list[Any]:
    """Random tokens of which the last few are scored."""
    import torch

    from megatron_longrope2.scoring.samples import Sample

    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(length) >= length - ANSWER
    drawn = torch.randint(0, vocab_size, (count, length), generator=generator)
    return [Sample(tokens, mask) for tokens in drawn]


def _race(scorer: Any, candidates: list[Any], samples: list[Any]) -> dict[str, float]:
    """Evaluations and seconds until the best quarter of the candidates is known exactly."""
    from megatron_longrope2.search.race import Race

    vectors = [one.long_factor for one in candidates]
    race = Race(vectors, len(samples), keep=max(1, len(candidates) // 4))
    start = time.perf_counter()
    race.run(
        lambda pairs: scorer([(candidates[who], samples[which]) for who, which in pairs]), scorer.workers
    )
    seconds = time.perf_counter() - start
    return {
        "evaluations": race.evaluations,
        "seconds": seconds,
        "seconds_per_candidate": seconds / len(candidates),
    }
