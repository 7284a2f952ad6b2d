"""The worker's side of preprocessing: slices of text become token files, one for each length bucket.

A shard is a folder `<key>/` with `<bucket>.tokens` (raw ids), `<bucket>.lengths` (int32, one a document) and
`counts.json`. Its key is a hash of everything that decides its content, so any later run that would make the
same shard uses the finished one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType

from megatron_longrope2.data.documents import Slice, read_slice
from megatron_longrope2.data.encoder import TextEncoder, load_encoder
from megatron_longrope2.data.settings import PreprocessSettings
from megatron_longrope2.files import replacing, write_json

# Text is handed to the tokenizer in batches of about this many characters.
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Shard:
    """Slices that one worker handles at a time."""

    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Approximate bytes of input."""
        return sum(part.size for part in self.slices)

    def key(self, settings: PreprocessSettings, encoder: TextEncoder) -> str:
        """Hash of what decides the content, with sizes and modification times of the input files."""
        stats = [Path(part.path).stat() for part in self.slices]
        content = {
            "tokenizer": [encoder.sha256, encoder.bos_id, encoder.eos_id],
            "buckets": [asdict(bucket) for bucket in settings.buckets],
            "documents": [settings.text_field, settings.add_bos, settings.cut_long_documents],
            "slices": [asdict(part) for part in self.slices],
            "files": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def build_shard(shard: Shard, settings: PreprocessSettings, folder: Path) -> None:
    """Tokenize a shard into `folder`, which appears when it is complete.

    `counts.json` counts its documents, those that were cut and those that are too long for every bucket (with
    their tokens), and "<bucket> documents" and "<bucket> tokens".

    Raises:
        InputError: unreadable text, or a disk that cannot be written.
    """
    encoder = _encoder(settings.tokenizer)
    dtype = DType.optimal_dtype(encoder.vocab_size)
    counts: Counter[str] = Counter()
    with replacing(folder) as partial:
        partial.mkdir()
        streams = {b.name: (partial / f"{b.name}.tokens").open("wb") for b in settings.buckets}
        lengths: dict[str, list[int]] = {b.name: [] for b in settings.buckets}

        def add(name: str, tokens: np.ndarray) -> None:
            streams[name].write(tokens.astype(dtype).tobytes())
            lengths[name].append(tokens.size)

        for tokens in _documents(shard, settings, encoder):
            counts["documents"] += 1
            bucket = next((b for b in settings.buckets if b.holds(tokens.size)), None)
            if bucket:
                add(bucket.name, tokens)
            else:
                counts.update(too_long=1, too_long_tokens=tokens.size)
            if settings.cut_long_documents and tokens.size > settings.original_length:
                counts["cut"] += 1
                for piece in cut(tokens, settings.original_length, keep_first=settings.add_bos):
                    add(settings.buckets[0].name, piece)
        for name, stream in streams.items():
            stream.close()
            np.array(lengths[name], dtype=np.int32).tofile(partial / f"{name}.lengths")
            counts.update({f"{name} documents": len(lengths[name]), f"{name} tokens": sum(lengths[name])})
        write_json(partial / "counts.json", counts)


def cut(tokens: np.ndarray, length: int, *, keep_first: bool) -> Iterator[np.ndarray]:
    """Cut a document into pieces of at most `length` tokens; `keep_first` repeats its first token (BOS)."""
    first = tokens[:1] if keep_first else tokens[:0]
    body = tokens[len(first) :]
    step = length - len(first)
    for start in range(0, len(body), step):
        yield np.concatenate([first, body[start : start + step]])


def _documents(shard: Shard, settings: PreprocessSettings, encoder: TextEncoder) -> Iterator[np.ndarray]:
    bos = np.array([encoder.bos_id] if settings.add_bos else [], dtype=np.int32)
    eos = np.array([encoder.eos_id], dtype=np.int32)
    for texts in _batches(shard, settings.text_field):
        for ids in encoder.encode(texts):
            yield np.concatenate([bos, ids, eos])


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
def _encoder(path: Path) -> TextEncoder:
    """One tokenizer a process, however many shards it builds."""
    return load_encoder(path)
