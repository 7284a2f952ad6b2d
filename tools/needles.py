"""Make needle samples: book text of exactly T tokens with a hidden number and a question about it."""

import argparse
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from megatron_longrope2 import device
from megatron_longrope2.data.books import read_books
from megatron_longrope2.data.needles import NeedleSampler, save_needles
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError, run_main


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="Hugging Face folder of the model's tokenizer"
    )
    parser.add_argument(
        "--books", type=Path, required=True, help="a .txt, a .jsonl (field text), or a folder of them"
    )
    parser.add_argument(
        "--length",
        type=int,
        nargs="+",
        required=True,
        metavar="TOKENS",
        help="exact length of a sample; of several, for --pool, each round of the depths takes the next",
    )
    parser.add_argument("--output", type=Path, help="safetensors file to write: samples of one length")
    parser.add_argument(
        "--pool",
        type=Path,
        metavar="PREFIX",
        help="write the samples as training documents, PREFIX.bin and PREFIX.idx",
    )
    parser.add_argument("--samples", type=int, default=10, help="how many; they go round the books")
    parser.add_argument(
        "--needle-depths",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="DEPTH",
        help="where the needle lies in the text, 0 (start) to 1 (end); the samples go round several",
    )
    parser.add_argument(
        "--needles-per-document", type=int, default=1, help="needles a sample, each asked for at its end"
    )
    parser.add_argument(
        "--value-kind", choices=["number", "word", "uuid"], default="number", help="what is hidden"
    )
    parser.add_argument(
        "--keys",
        choices=["train", "held_out", "all"],
        default="all",
        help="which keys to use; held_out is a fixed fifth",
    )
    parser.add_argument("--seed", type=int, default=0, help="of books, places, keys and values")
    parser.add_argument(
        "--join-books", action="store_true", help="go on with the next book where one is too short"
    )
    return parser.parse_args()


def _main() -> None:
    arguments = parse_arguments()
    if arguments.samples < 1:
        raise InputError(f"--samples: {arguments.samples} is not a number of samples; use 1 or more")
    if arguments.output is None and arguments.pool is None:
        raise InputError("--output: nothing to write; give it, or --pool, or both")
    if arguments.output is not None and len(arguments.length) > 1:
        raise InputError(f"--length: {arguments.length}: a needle file holds one length; give --pool alone")
    tokenizer = load_tokenizer(arguments.tokenizer)
    sampler = NeedleSampler(
        tokenizer,
        read_books(arguments.books),
        seed=arguments.seed,
        keys=arguments.keys,
        value_kind=arguments.value_kind,
        needles_per_document=arguments.needles_per_document,
        join_books=arguments.join_books,
    )
    drawn = sampler.samples(arguments.samples, arguments.length, arguments.needle_depths)
    samples = list(tqdm(drawn, desc="needles", total=arguments.samples, unit="sample"))
    settings = {**sampler.settings, "needle_depths": arguments.needle_depths, "books": str(arguments.books)}
    if arguments.output is not None:
        save_needles(arguments.output, samples, tokenizer, settings)
    if arguments.pool is not None:
        device.install()
        from megatron_longrope2.data.pools import write_documents

        write_documents(arguments.pool, (sample.tokens for sample in samples), vocab_size=len(tokenizer))
    books = Counter(sample.book for sample in samples)
    answers = sum(int(sample.answer_mask.sum()) for sample in samples)
    print(
        f"{arguments.output or arguments.pool}: {len(samples)} samples of "
        f"{' / '.join(map(str, arguments.length))} tokens from {len(books)} books, {answers} answer tokens"
    )


def main() -> None:
    """Run the command line; bad input ends it with one line and status 2."""
    run_main(_main)


if __name__ == "__main__":
    main()
