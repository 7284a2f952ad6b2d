"""Time preprocessing (reading, tokenizing, writing) against the tokenizer library alone, on one core, and see
what it does with text of which a mix needs 5 %.

`speed_vs_tokenizer` is the quotient of their speeds in processor time: 1 where reading and writing cost
nothing. `tokenized_vs_kept`: tokens of a mix that needs the longest documents of log-normal lengths.
`skipping_vs_reading`: the time of passing over lines that no bucket needs, over that of reading them.
"""

import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import batched, count
from pathlib import Path
from statistics import NormalDist
from tempfile import TemporaryDirectory

from cyclopts.types import PositiveInt
from megatron.core.datasets.indexed_dataset import IndexedDataset

from benchmarks.measuring import Measurement, Output, in_turns
from megatron_longrope2.data.documents import iter_documents, read_slice, slices
from megatron_longrope2.data.preprocess import build_shard
from megatron_longrope2.data.selection import Selection
from megatron_longrope2.data.settings import Bucket, PreprocessSettings
from megatron_longrope2.data.survey import survey
from megatron_longrope2.data.tokenizer import load_encoder, load_tokenizer

BATCH = 1 << 20  # characters that the tokenizer is given at once, as in preprocessing
NEEDED = 0.05  # share of the characters that is in documents that the mix needs


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Text, tokenizer and repetitions.

    Attributes:
        input: The text that is cut into documents: a file or folder that `longrope2 preprocess` reads.
        tokenizer: A folder with a Hugging Face tokenizer.json.
        document_characters: The length of the documents that the text is cut into.
        characters: The text to take, at most.
        original_length: Where the documents that the mix needs begin, in tokens.
        mix_characters: The text of which the mix needs a part.
        repeats: How often each is measured; the fastest counts.
    """

    input: Path = Path("examples/tiny_cpu/books/train")
    tokenizer: Path = Path("examples/tiny_cpu/base")
    document_characters: PositiveInt = 4000
    characters: PositiveInt = 4_000_000
    original_length: PositiveInt = 2048
    mix_characters: PositiveInt = 100_000_000
    repeats: PositiveInt = 7


def measure(*, settings: Settings) -> Measurement:
    """Time `build_shard` on a .jsonl, and the tokenizer on the same texts in the same batches.

    Raises:
        InputError: nothing to read, or no Hugging Face tokenizer.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the ratio is of one core to one core
    backend = load_tokenizer(settings.tokenizer).backend_tokenizer
    text = "\n".join(document.text for document in iter_documents(settings.input))[: settings.characters]
    step = settings.document_characters
    texts = [text[start : start + step] for start in range(0, len(text), step)]
    batches = list(batched(texts, max(1, BATCH // step)))
    with TemporaryDirectory() as place:
        folder = Path(place)
        file = folder / "text.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        shard = slices(file, file.stat().st_size)
        config = PreprocessSettings(
            input=file, output=folder, tokenizer=settings.tokenizer, original_length=8192
        )
        numbers = count()

        def tokenize() -> None:
            for batch in batches:
                backend.encode_batch_fast(batch, add_special_tokens=False)

        def all_of_it() -> None:
            build_shard(shard, config, folder / f"shard-{next(numbers)}")

        actions = {"tokenizer": tokenize, "preprocess": all_of_it}
        in_turns(actions, 1)  # the tokenizer fills its cache of words
        seconds = in_turns(actions, settings.repeats, clock=time.process_time)
        kept = _measure_mix(settings, text, folder)
    return Measurement(
        settings,
        ratios={"speed_vs_tokenizer": seconds["tokenizer"] / seconds["preprocess"], **kept.ratios},
        measured={"documents": len(texts), "processor_seconds": seconds, **kept.measured},
    )


def _measure_mix(settings: Settings, text: str, folder: Path) -> Measurement:
    """What a mix that needs long documents tokenizes, and how fast it passes over the others."""
    file = folder / "mix.jsonl"
    rng = random.Random(0)
    with file.open("w") as stream:
        for length in _lengths(settings, rng, len(text) // 2):
            start = rng.randrange(len(text) - length)
            stream.write(json.dumps({"text": text[start : start + length], "id": start}) + "\n")
    config = PreprocessSettings(
        input=file, output=folder, tokenizer=settings.tokenizer, original_length=settings.original_length
    )
    found = survey(file, "text", load_encoder(settings.tokenizer).encode, settings.original_length)
    long = Selection(config.feeds, (0, sys.maxsize), found.range)
    parts = slices(file)
    tokenized = sum(
        build_shard([part], config, folder / f"mix-{number}", long) for number, part in enumerate(parts)
    )
    pools = [IndexedDataset(f"{folder}/mix-{number}/long") for number in range(len(parts))]
    kept = sum(int(pool.sequence_lengths.sum()) for pool in pools)
    nothing = Selection([Bucket("nothing", sys.maxsize, None)], [1], found.range)

    def read() -> None:
        with file.open("rb") as lines:
            for _ in lines:
                pass

    def skip() -> None:
        for part in parts:
            assert not list(read_slice(part, wanted=nothing.wanted))

    seconds = in_turns({"read": read, "skip": skip}, settings.repeats, clock=time.process_time)
    megabytes = file.stat().st_size / 1e6
    estimate = found.tokens(config.buckets[1])
    return Measurement(
        settings,
        ratios={
            "tokenized_vs_kept": tokenized / kept,
            "skipping_vs_reading": seconds["skip"] / seconds["read"],
        },
        measured={
            "mix_tokens_kept": kept,
            "mix_tokens_estimated": [estimate.low, estimate.likely, estimate.high],
            "reading_megabytes_a_second": megabytes / seconds["read"],
            "skipping_megabytes_a_second": megabytes / seconds["skip"],
        },
    )


def _lengths(settings: Settings, rng: random.Random, longest: int) -> Iterator[int]:
    """Characters of documents of log-normal lengths, 5 % of them in ones above the original length."""
    # The shipped tokenizer finds three characters a token. Of log-normal lengths with a deviation of 1, the
    # share of the characters beyond x is that of the normal distribution beyond log(x / median) - 1.
    end = 3.03 * settings.original_length
    median = math.log(end) - 1 - NormalDist().inv_cdf(1 - NEEDED)
    written = 0
    while written < settings.mix_characters:
        length = 1 + int(min(longest, rng.lognormvariate(median, 1)))
        written += length
        yield length
