"""What `longrope2 preprocess` and `longrope2 needles` are told. Nothing here is slow to import."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from cyclopts.validators import Number

from megatron_longrope2.errors import InputError

Keys = Literal["train", "held_out", "all"]
WordingName = Literal["short", "ruler"]


@dataclass(frozen=True)
class Bucket:
    """The documents of more than `longer_than` and at most `at_most` tokens (None: without an upper end)."""

    name: str
    longer_than: int
    at_most: int | None

    def holds(self, length: int) -> bool:
        """Whether a document of `length` tokens belongs here."""
        return self.longer_than < length and (self.at_most is None or length <= self.at_most)


@Parameter(name="*", group="Preprocessing")
@dataclass(frozen=True, kw_only=True)
class PreprocessSettings:
    """How text becomes pools of tokens.

    Attributes:
        input: Text to read: a .txt (one document), a .jsonl, .jsonl.gz, .json.gz, .jsonl.zst or .parquet (a
            document a line or row), or a folder of them. With --mix: the folder that holds the sources.
        output: Folder to make. Without --mix it must be missing or empty.
        tokenizer: Folder with the model's tokenizer.json or tokenizer.model, or the file itself.
        original_length: The model's pre-trained window in tokens. Documents of at most this length go into
            the short bucket.
        long_buckets: Upper ends, in tokens, of several buckets of longer documents, such as 100000 200000;
            they are named long-100000 and so on, and documents longer than the last end are dropped and
            counted. By default there is one bucket, `long`, without an end. With --mix the mix file says it.
        text_field: JSON field or parquet column that holds the text.
        add_bos: Put the tokenizer's BOS before every document.
        cut_long_documents: Also cut every document longer than the pre-trained window into pieces for the
            short bucket.
        allow_empty_buckets: Write the other buckets where one gets no document, instead of refusing.
        workers: Number of processes that tokenize; in a job of several ranks, that of each rank.
        shard_size: MiB of input, roughly, that a worker handles at a time. A run that is stopped and started
            again repeats about this much for each worker. With --mix it also decides which documents a bucket
            gets before it is full.

    Raises:
        InputError: the ends of the buckets do not rise.
    """

    input: Path
    output: Path
    tokenizer: Path
    original_length: Annotated[int, Parameter(validator=Number(gte=2))]
    long_buckets: tuple[int, ...] = ()
    text_field: str = "text"
    add_bos: bool = False
    cut_long_documents: bool = False
    allow_empty_buckets: bool = False
    workers: PositiveInt = 1
    shard_size: PositiveFloat = 16

    def __post_init__(self) -> None:
        ends = [self.original_length, *self.long_buckets]
        if sorted(set(ends)) != ends:
            raise InputError(f"--long-buckets: {ends} do not rise from the original length; sort them")

    @property
    def content(self) -> dict[str, Any]:
        """What decides the content of the pools, but for the tokenizer."""
        names = ("input", "original_length", "long_buckets", "text_field", "add_bos", "cut_long_documents")
        return {name: getattr(self, name) for name in names}

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """`short`, then `long`, or `long-<upper end>` for each of several."""
        short = Bucket("short", 0, self.original_length)
        if not self.long_buckets:
            return short, Bucket("long", self.original_length, None)
        starts = (self.original_length, *self.long_buckets)
        ends = zip(starts, self.long_buckets, strict=False)
        return short, *(Bucket(f"long-{end}", start, end) for start, end in ends)

    @property
    def feeds(self) -> tuple[Bucket, ...]:
        """`buckets`, each with the lengths of the documents that it gets tokens from."""
        short, *long = self.buckets
        return replace(short, at_most=None) if self.cut_long_documents else short, *long


@Parameter(name="*", group="Needles")
@dataclass(frozen=True, kw_only=True)
class NeedleSettings:
    """Which needle samples are written as training documents.

    Attributes:
        tokenizer: Hugging Face folder of the model's tokenizer.
        books: Text that the needles are hidden in: a file or folder that `longrope2 preprocess` reads too.
        lengths: Exact length of a sample in tokens. With several lengths, each round of the depths takes the
            next one.
        output: Path of the documents to write, without .bin and .idx.
        samples: Number of samples; they go round the books.
        needle_depths: Where the needle lies in the text, from 0 (its start) to 1 (its end). With several
            depths, the samples go round them.
        keys: Which keys the hidden numbers may have. A fixed fifth of all keys is held_out for evaluation,
            train is the rest.
        needle_wording: The sentences around the text: short ones, or those of RULER's single-number task, as
            the installed lm-evaluation-harness has them (the paper's Appendix C).
        seed: Seed of books, places, keys and numbers.
    """

    tokenizer: Path
    books: Path
    lengths: tuple[PositiveInt, ...]
    output: Path
    samples: PositiveInt = 10
    needle_depths: tuple[float, ...] = (0.0,)
    keys: Keys = "all"
    needle_wording: WordingName = "short"
    seed: int = 0
