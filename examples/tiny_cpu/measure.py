"""Needles and text perplexity of one checkpoint, with its own RoPE factors or several others.

Runs under plain python or torchrun. Samples come from held-out books and keys, the same for every call with
the same settings, so that any two results can be compared sample by sample.
"""

import argparse
from pathlib import Path

from megatron_longrope2 import device
from megatron_longrope2.errors import run_main
from megatron_longrope2.files import write_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--load", type=Path, required=True, help="Megatron checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--books", type=Path, required=True, help="held-out books")
    parser.add_argument(
        "--rope-factors",
        nargs="+",
        metavar="NAME=FILE",
        default=[],
        help="factor files to measure, each under a name; by default the checkpoint's own, as `own`",
    )
    parser.add_argument("--lengths", nargs="+", type=int, required=True, help="of needle samples, tokens")
    parser.add_argument("--depths", type=int, default=8, help="depths from 0 to 1")
    parser.add_argument("--repetitions", type=int, default=8, help="needles at each length and depth")
    parser.add_argument("--texts", type=int, default=100, help="texts of short perplexity")
    parser.add_argument("--long-texts", type=int, default=16, help="texts of long perplexity")
    parser.add_argument("--seed", type=int, default=1, help="of the samples")
    return parser.parse_args()


def _main() -> None:
    arguments = parse_arguments()
    device.install()
    import torch.distributed as dist

    from megatron_longrope2.data.books import read_books
    from megatron_longrope2.data.needles import NeedleSampler
    from megatron_longrope2.evaluation.megatron_scorer import MegatronScorer
    from megatron_longrope2.evaluation.needle_grid import measure_needles
    from megatron_longrope2.evaluation.perplexity import text_perplexity
    from megatron_longrope2.model.loading import load_model
    from megatron_longrope2.rope import load_factors
    from megatron_longrope2.search.objective import document_samples

    model = load_model(arguments.load)
    scorer = MegatronScorer(model)
    tokenizer, books = model.tokenizer(), read_books(arguments.books)
    sampler = NeedleSampler(tokenizer, books, seed=arguments.seed, keys="held_out")
    depths = [i / max(1, arguments.depths - 1) for i in range(arguments.depths)]
    short = document_samples(tokenizer, books, arguments.texts, model.factors.original_length, arguments.seed)
    long = document_samples(tokenizer, books, arguments.long_texts, max(arguments.lengths), arguments.seed)
    given = dict(pair.split("=", 1) for pair in arguments.rope_factors)
    sets = {name: load_factors(file) for name, file in given.items()} or {"own": model.factors}
    results = {}
    for name, factors in sets.items():
        model.set_factors(factors)
        needles = measure_needles(
            scorer, sampler, arguments.lengths, depths, arguments.repetitions, f"{name}: needles"
        )
        results[name] = {
            "needles": needles.to_dict(),
            "short_text": text_perplexity(scorer, short, f"{name}: short text").to_dict(),
            "long_text": text_perplexity(scorer, long, f"{name}: long text").to_dict(),
        }
    if dist.get_rank() == 0:
        write_json(arguments.output, results)
    dist.destroy_process_group()


def main() -> None:
    run_main(_main)


if __name__ == "__main__":
    main()
