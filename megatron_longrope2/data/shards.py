"""The worker's side of data preparation: some slices of text to token files by length bucket.

A shard is a folder `<key>/` with `<bucket>.tokens` (raw ids), `<bucket>.lengths` (int32, one a document) and
`counts.json`. Its key is a hash of everything that decides its content, so a finished shard can be used again
by any later run that would make the same one.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from megatron_longrope2.data.documents import Slice, read_slice
from megatron_longrope2.data.encoder import TextEncoder, load_encoder
from megatron_longrope2.files import replacing, write_json

# Text is handed to the tokenizer in batches of about this many characters.
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Bucket:
    """Documents of more than `longer_than` and at most `at_most` tokens (None: any more)."""

    name: str
    longer_than: int
    at_most: int | None

    def holds(self, length: int) -> bool:
        return self.longer_than < length and (self.at_most is None or length <= self.at_most)


@dataclass(frozen=True)
class Recipe:
    """What turns text into a pool; every field changes the result.

    Attributes:
        tokenizer: path of the tokenizer; `tokenizer_sha256` tells which one it is.
        original_length: the short window L, tokens.
        buckets: in order of length, the short one first.
        text_field: field of a `.jsonl` or column of a `.parquet` that holds the text.
        bos_id: put before every document (and every piece of one that is cut); None for nothing.
        eos_id: put after every document.
        cut_long_documents: besides its own bucket, a document longer than L also goes into the short bucket,
            in pieces of at most L tokens.
    """

    tokenizer: str
    tokenizer_sha256: str
    original_length: int
    buckets: tuple[Bucket, ...]
    text_field: str
    bos_id: int | None
    eos_id: int
    cut_long_documents: bool


@dataclass(frozen=True)
class Shard:
    """Slices that one worker handles at a time."""

    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Bytes of input, about."""
        return sum(part.size for part in self.slices)

    def key(self, recipe: Recipe) -> str:
        """Hash of the recipe and of the slices with their files' sizes and times of change."""
        stats = [Path(part.path).stat() for part in self.slices]
        content = {
            "recipe": asdict(recipe) | {"tokenizer": None},
            "slices": [asdict(part) for part in self.slices],
            "files": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def build_shard(shard: Shard, recipe: Recipe, folder: Path) -> None:
    """Tokenize a shard into `folder`, which appears when it is whole.

    Raises:
        InputError: unreadable text, or a disk that cannot be written.
    """
    encoder = _encoder(recipe.tokenizer)
    dtype = token_dtype(encoder.vocab_size)
    counts = {"documents": 0, "too_long": 0, "too_long_tokens": 0, "cut": 0}
    with replacing(folder) as partial:
        partial.mkdir()
        streams = {b.name: (partial / f"{b.name}.tokens").open("wb") for b in recipe.buckets}
        lengths: dict[str, list[int]] = {b.name: [] for b in recipe.buckets}

        def add(name: str, tokens: np.ndarray) -> None:
            streams[name].write(tokens.astype(dtype).tobytes())
            lengths[name].append(tokens.size)

        for tokens in _documents(shard, recipe, encoder):
            counts["documents"] += 1
            bucket = next((b for b in recipe.buckets if b.holds(tokens.size)), None)
            if bucket:
                add(bucket.name, tokens)
            else:
                counts["too_long"] += 1
                counts["too_long_tokens"] += tokens.size
            if recipe.cut_long_documents and tokens.size > recipe.original_length:
                counts["cut"] += 1
                for piece in cut(tokens, recipe.original_length, keep_first=recipe.bos_id is not None):
                    add(recipe.buckets[0].name, piece)
        for name, stream in streams.items():
            stream.close()
            np.array(lengths[name], dtype=np.int32).tofile(partial / f"{name}.lengths")
        write_json(partial / "counts.json", counts)


def cut(tokens: np.ndarray, length: int, *, keep_first: bool) -> Iterator[np.ndarray]:
    """Cut a document into pieces of at most `length` tokens; `keep_first` repeats its first token (BOS)."""
    first = tokens[:1] if keep_first else tokens[:0]
    body = tokens[len(first) :]
    step = length - len(first)
    for start in range(0, len(body), step):
        yield np.concatenate([first, body[start : start + step]])


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """What Megatron stores tokens as (`DType.optimal_dtype` in indexed_dataset.py)."""
    return np.uint16 if vocab_size < 65500 else np.int32


def _documents(shard: Shard, recipe: Recipe, encoder: TextEncoder) -> Iterator[np.ndarray]:
    bos = [] if recipe.bos_id is None else [recipe.bos_id]
    for texts in _batches(shard, recipe.text_field):
        for ids in encoder.encode(texts):
            tokens = np.empty(len(bos) + ids.size + 1, dtype=np.int32)
            tokens[: len(bos)] = bos
            tokens[len(bos) : -1] = ids
            tokens[-1] = recipe.eos_id
            yield tokens


def _batches(shard: Shard, text_field: str) -> Iterator[Sequence[str]]:
    texts: list[str] = []
    characters = 0
    for part in shard.slices:
        for document in read_slice(part, text_field):
            texts.append(document.text)
            characters += len(document.text)
            if characters >= _BATCH_CHARACTERS:
                yield texts
                texts, characters = [], 0
    if texts:
        yield texts


@lru_cache(maxsize=1)
def _encoder(path: str) -> TextEncoder:
    """One tokenizer a process, however many shards it builds."""
    return load_encoder(path)
