"""Text to tokens: `<output>/short.{bin,idx}`, `<output>/long.{bin,idx}` and `<output>/manifest.json`.

With --mix, one such folder for every source of the mix, and `<output>/mix.json`.
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from typing import TYPE_CHECKING

from megatron_longrope2.errors import InputError, run_main

if TYPE_CHECKING:
    from megatron_longrope2.data.preprocess import PreprocessConfig


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add(
        "--input",
        required=True,
        metavar="PATH",
        help=".txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet, or a folder of them; with --mix the folder "
        "that the sources' paths are relative to",
    )
    add(
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder to make; without --mix it must not exist or be empty",
    )
    add(
        "--mix",
        metavar="FILE",
        help="YAML file of sources, buckets and token budgets, or `paper` for the paper's mix",
    )
    add("--dry-run", action="store_true", help="print the mix's token table and stop; needs --mix")
    add(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="folder with tokenizer.json or tokenizer.model (sentencepiece, or tiktoken ranks), or the file",
    )
    add(
        "--original-length",
        type=int,
        required=True,
        metavar="TOKENS",
        help="pre-trained window; documents of at most this length are the short bucket",
    )
    add(
        "--long-buckets",
        type=int,
        nargs="+",
        default=[],
        metavar="TOKENS",
        help="upper ends of several long buckets (the paper's: 100000 200000), named long-<end>; longer "
        "documents are dropped and counted; without it there is one bucket, `long`, without an end; with "
        "--mix the mix file says it",
    )
    add("--text-field", default="text", metavar="NAME", help="JSON field or parquet column of the text")
    add("--add-bos", action="store_true", help="put the tokenizer's BOS before every document")
    add(
        "--cut-long-documents",
        action="store_true",
        help="also cut documents longer than the pre-trained window into pieces for the short bucket",
    )
    add("--allow-empty-buckets", action="store_true", help="do not refuse when a bucket gets no document")
    add("--workers", type=int, default=1, metavar="N", help="processes that tokenize")
    add(
        "--shard-size",
        type=int,
        default=16,
        metavar="MIB",
        help="input that a worker handles at a time; a stopped run repeats at most this much a worker",
    )
    return parser


def _main() -> None:
    args = _parser().parse_args()
    if args.dry_run and not args.mix:
        raise InputError("--dry-run: prints a mix's token table; give --mix")
    # Megatron takes seconds to import; help and wrong options need not wait for it.
    from megatron_longrope2.data.preprocess import PreprocessConfig, preprocess

    job = PreprocessConfig(
        input=args.input,
        output=args.output,
        tokenizer=args.tokenizer,
        original_length=args.original_length,
        long_buckets=tuple(args.long_buckets),
        text_field=args.text_field,
        add_bos=args.add_bos,
        cut_long_documents=args.cut_long_documents,
        allow_empty_buckets=args.allow_empty_buckets,
        workers=args.workers,
        shard_bytes=args.shard_size << 20,
    )
    if args.mix:
        _run_mix(args.mix, job, dry_run=args.dry_run)
        return
    manifest = preprocess(job)
    for bucket in manifest["buckets"]:
        print(f"{bucket['name']}: {bucket['documents']:,} documents, {bucket['tokens']:,} tokens")
    if manifest["documents_too_long"]:
        print(f"dropped as longer than the last bucket: {manifest['documents_too_long']:,} documents")


def _run_mix(path: str, job: "PreprocessConfig", *, dry_run: bool) -> None:
    from megatron_longrope2.data.mix import available_tokens, load_mix, preprocess_mix, token_table

    mix = load_mix(path, job.input)
    if not dry_run:
        preprocess_mix(mix, job)
    print(token_table(mix, job.original_length, available_tokens(mix, job.output)))
    if not dry_run:
        print(f"wrote {job.output}/mix.json")


def main() -> None:
    run_main(_main)


if __name__ == "__main__":
    main()
