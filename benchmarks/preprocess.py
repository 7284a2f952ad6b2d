"""Preprocessing (reading, tokenizing, writing) against tokenizing alone with the same library, on one core.

`speed_vs_tokenizer` is the quotient of their speeds in processor time: 1 where reading and writing cost
nothing.
"""

import json
import os
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_longrope2.benchmarks import Measurement, alternate
from megatron_longrope2.errors import InputError


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this benchmark."""
    add = parser.add_argument
    add(
        "--input",
        default="examples/tiny_cpu/books/train",
        metavar="PATH",
        help="text to cut into documents: a file or folder that longrope2-preprocess reads",
    )
    add(
        "--tokenizer",
        default="examples/tiny_cpu/base",
        metavar="FOLDER",
        help="folder with a Hugging Face tokenizer.json",
    )
    add(
        "--document-characters",
        type=int,
        default=4000,
        metavar="N",
        help="length of the documents that the text is cut into",
    )
    add("--characters", type=int, default=4_000_000, metavar="N", help="text to take, at most")
    add("--repeats", type=int, default=7, metavar="N", help="measurements of each; the fastest counts")


def measure(args: Namespace) -> Measurement:
    """Time `build_shard` on a .jsonl, and the tokenizer on the same texts in the same batches.

    Raises:
        InputError: nothing to read, or no Hugging Face tokenizer.
    """
    # The ratio is of one core to one core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from megatron_longrope2 import device

    device.install()
    from megatron_longrope2.data.documents import iter_documents, slices
    from megatron_longrope2.data.encoder import load_encoder
    from megatron_longrope2.data.preprocess import PreprocessConfig
    from megatron_longrope2.data.shards import Recipe, Shard, build_shard
    from megatron_longrope2.data.tokenizer import load_tokenizer

    encoder = load_encoder(args.tokenizer)
    if encoder.kind != "huggingface":
        raise InputError(f"{args.tokenizer}: no tokenizer.json; give a folder of a Hugging Face model")
    backend = load_tokenizer(args.tokenizer).backend_tokenizer
    text = "\n".join(document.text for document in iter_documents(args.input))[: args.characters]
    step = args.document_characters
    texts = [text[start : start + step] for start in range(0, len(text), step)]
    batches = [texts[start : start + (1 << 20) // step] for start in range(0, len(texts), (1 << 20) // step)]
    settings = PreprocessConfig(args.input, "", args.tokenizer, original_length=8192)
    recipe = Recipe(
        tokenizer=args.tokenizer,
        tokenizer_sha256=encoder.sha256,
        original_length=settings.original_length,
        buckets=settings.buckets,
        text_field="text",
        bos_id=None,
        eos_id=encoder.eos_id,
        cut_long_documents=False,
    )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "text.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        shard = Shard(tuple(slices(file, file.stat().st_size)))
        made = iter(range(1 << 30))

        def tokenize() -> None:
            for batch in batches:
                backend.encode_batch_fast(batch, add_special_tokens=False)

        def preprocess() -> None:
            build_shard(shard, recipe, Path(folder) / f"shard-{next(made)}")

        actions = {"tokenizer": tokenize, "preprocess": preprocess}
        alternate(actions, 1)  # the tokenizer fills its cache of words
        seconds = alternate(actions, args.repeats, clock=time.process_time)
    fastest = {name: min(times) for name, times in seconds.items()}
    return Measurement(
        settings={
            "input": args.input,
            "tokenizer": args.tokenizer,
            "documents": len(texts),
            "characters": len(text),
            "repeats": args.repeats,
        },
        ratios={"speed_vs_tokenizer": fastest["tokenizer"] / fastest["preprocess"]},
        measured={f"{name}_processor_seconds": times for name, times in seconds.items()},
    )
