"""Time preprocessing (reading, tokenizing, writing) against the tokenizer library alone, on one core.

`speed_vs_tokenizer` is the quotient of their speeds in processor time: 1 where reading and writing cost
nothing.
"""

import json
import os
import time
from dataclasses import dataclass
from itertools import batched, count
from pathlib import Path
from tempfile import TemporaryDirectory

from cyclopts.types import PositiveInt

from benchmarks.measuring import Measurement, Output, in_turns
from megatron_longrope2.data.documents import iter_documents, slices
from megatron_longrope2.data.preprocess import build_shard
from megatron_longrope2.data.settings import PreprocessSettings
from megatron_longrope2.data.tokenizer import load_tokenizer

BATCH = 1 << 20  # characters that the tokenizer is given at once, as in preprocessing


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Text, tokenizer and repetitions.

    Attributes:
        input: The text that is cut into documents: a file or folder that `longrope2 preprocess` reads.
        tokenizer: A folder with a Hugging Face tokenizer.json.
        document_characters: The length of the documents that the text is cut into.
        characters: The text to take, at most.
        repeats: How often each is measured; the fastest counts.
    """

    input: Path = Path("examples/tiny_cpu/books/train")
    tokenizer: Path = Path("examples/tiny_cpu/base")
    document_characters: PositiveInt = 4000
    characters: PositiveInt = 4_000_000
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
    with TemporaryDirectory() as folder:
        file = Path(folder) / "text.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        shard = slices(file, file.stat().st_size)
        config = PreprocessSettings(
            input=file, output=Path(folder), tokenizer=settings.tokenizer, original_length=8192
        )
        numbers = count()

        def tokenize() -> None:
            for batch in batches:
                backend.encode_batch_fast(batch, add_special_tokens=False)

        def preprocess() -> None:
            build_shard(shard, config, Path(folder) / f"shard-{next(numbers)}")

        actions = {"tokenizer": tokenize, "preprocess": preprocess}
        in_turns(actions, 1)  # the tokenizer fills its cache of words
        seconds = in_turns(actions, settings.repeats, clock=time.process_time)
    return Measurement(
        settings,
        ratios={"speed_vs_tokenizer": seconds["tokenizer"] / seconds["preprocess"]},
        measured={"documents": len(texts), "processor_seconds": seconds},
    )
