"""Text to pools: tokenize in parallel, sort documents by length, write Megatron's `.bin` and `.idx`.

Workers turn *shards*, which are a few slices of the input each, into pools of their own; these are then
joined. A shard's folder has a pool for each length bucket and `counts.json`. Its name is a hash of everything
that decides its content, so any later run that would make the same shard uses the finished one.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple
from functools import lru_cache
from itertools import repeat
from operator import attrgetter
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder, get_bin_path, get_idx_path
from tqdm import tqdm

from megatron_longrope2.data.documents import Slice, read_slice, slices
from megatron_longrope2.data.manifest import BucketSize, Manifest
from megatron_longrope2.data.settings import Bucket, PreprocessSettings
from megatron_longrope2.data.tokenizer import TextEncoder, load_encoder
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, replacing, write_json

# Text is handed to the tokenizer in batches of about this many characters.
_BATCH_CHARACTERS = 1 << 20

Shard = list[Slice]

# One tokenizer a process, however many shards it builds.
_encoder = lru_cache(maxsize=1)(load_encoder)


def preprocess(settings: PreprocessSettings) -> Manifest:
    """Write the pools and return their manifest; finished shards of a run that was stopped are used again.

    A worker's memory holds a batch of documents, or the largest single one. The disk holds the tokens twice
    for a while: as shards, in a hidden folder beside the output, and as pools.

    Raises:
        InputError: bad input, a bucket without documents, or a disk that cannot be written.
    """
    folder = settings.output.with_name(f".{settings.output.name}.shards")
    with replacing(settings.output) as partial:
        encoder = _encoder(settings.tokenizer)
        if settings.add_bos and encoder.bos_id is None:
            raise InputError(f"{encoder.file}: bos_token: the tokenizer has none; leave out --add-bos")
        shard_bytes = int(settings.shard_size * (1 << 20))
        groups = _groups(slices(settings.input, shard_bytes), attrgetter("size"), shard_bytes)
        shards = {folder / _key(shard, settings, encoder): shard for shard in groups}
        _build_shards(shards, settings)
        counts = sum((Counter(read_json(place / "counts.json")) for place in shards), Counter())
        partial.mkdir()
        # Joining collects garbage after each shard, which takes half a second if it looks at all modules.
        gc.freeze()
        buckets = {
            bucket.name: _join(bucket, shards, partial, settings, encoder)
            for bucket in tqdm(settings.buckets, desc="join")
        }
        manifest = Manifest(
            settings=settings,
            tokenizer=encoder.file,
            tokenizer_sha256=encoder.sha256,
            buckets=buckets,
            **counts,
        )
        write_json(partial / "manifest.json", manifest.model_dump(mode="json"))
    shutil.rmtree(folder)
    return manifest


def build_shard(shard: Shard, settings: PreprocessSettings, folder: Path) -> None:
    """Tokenize a shard into `folder`, which appears when it is complete.

    `counts.json` holds the counts of its part in a `Manifest`.

    Raises:
        InputError: unreadable text, or a disk that cannot be written.
    """
    encoder = _encoder(settings.tokenizer)
    dtype = DType.optimal_dtype(encoder.vocab_size)
    counts: Counter[str] = Counter()
    with replacing(folder) as partial:
        partial.mkdir()
        pools = {
            bucket: IndexedDatasetBuilder(get_bin_path(f"{partial}/{bucket.name}"), dtype)
            for bucket in settings.buckets
        }
        for tokens in _documents(shard, settings, encoder):
            counts["documents"] += 1
            bucket = next((bucket for bucket in pools if bucket.holds(tokens.size)), None)
            if bucket:
                pools[bucket].add_document(tokens, [tokens.size])
            else:
                counts.update(documents_too_long=1, tokens_too_long=tokens.size)
            if settings.cut_long_documents and tokens.size > settings.original_length:
                counts["documents_cut"] += 1
                for piece in cut(tokens, settings.original_length, keep_first=settings.add_bos):
                    pools[settings.buckets[0]].add_document(piece, [piece.size])
        for bucket, pool in pools.items():
            pool.finalize(get_idx_path(f"{partial}/{bucket.name}"))
        write_json(partial / "counts.json", counts)


def cut(tokens: np.ndarray, length: int, *, keep_first: bool) -> Iterator[np.ndarray]:
    """Cut a document into pieces of at most `length` tokens; `keep_first` repeats its first token (BOS)."""
    first = tokens[:1] if keep_first else tokens[:0]
    body = tokens[len(first) :]
    step = length - len(first)
    for start in range(0, len(body), step):
        yield np.concatenate([first, body[start : start + step]])


def _groups[T](items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Consecutive items, as many as it takes to reach the limit."""
    group: list[T] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group


def _size(shards: Iterable[Shard]) -> int:
    """Approximate bytes of input."""
    return sum(part.size for shard in shards for part in shard)


def _key(shard: Shard, settings: PreprocessSettings, encoder: TextEncoder) -> str:
    """Hash of what decides the content, with sizes and modification times of the input files."""
    stats = [Path(part.path).stat() for part in shard]
    content = [
        settings.content,
        [encoder.sha256, encoder.bos_id, encoder.eos_id],
        [(*astuple(part), stat.st_size, stat.st_mtime_ns) for part, stat in zip(shard, stats, strict=True)],
    ]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:32]


def _build_shards(shards: dict[Path, Shard], settings: PreprocessSettings) -> None:
    """Build the shards whose folders are not there yet."""
    missing = {folder: shard for folder, shard in shards.items() if not folder.exists()}
    if not missing:
        return
    # The workers are the parallelism; the tokenizer's own threads would compete and do not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    executor = ProcessPoolExecutor(
        min(settings.workers, len(missing)),
        mp_context=multiprocessing.get_context("fork"),
        initializer=_end_with_parent,
    )
    total, left = _size(shards.values()), _size(missing.values())
    try:
        with tqdm(total=total, initial=total - left, unit="B", unit_scale=True, desc="tokenize") as bar:
            built = executor.map(build_shard, missing.values(), repeat(settings), missing)
            for shard, _ in zip(missing.values(), built, strict=True):
                bar.update(_size([shard]))
    except BrokenProcessPool as error:
        raise InputError(
            f"{settings.output}: a worker was killed (out of memory?); run the same command again to resume, "
            "with fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Stop this worker when the main process is killed; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _documents(shard: Shard, settings: PreprocessSettings, encoder: TextEncoder) -> Iterator[np.ndarray]:
    bos = np.array([encoder.bos_id] if settings.add_bos else [], dtype=np.int32)
    eos = np.array([encoder.eos_id], dtype=np.int32)
    texts = (document.text for part in shard for document in read_slice(part, settings.text_field))
    for batch in _groups(texts, len, _BATCH_CHARACTERS):
        for ids in encoder.encode(batch):
            yield np.concatenate([bos, ids, eos])


def _join(
    bucket: Bucket, shards: Iterable[Path], output: Path, settings: PreprocessSettings, encoder: TextEncoder
) -> BucketSize:
    """Join the shards' pools of a bucket to one in `output`; an empty one is refused or not written."""
    pools = [str(folder / bucket.name) for folder in shards]
    pools = [pool for pool in pools if os.path.getsize(get_bin_path(pool))]
    if not pools and not settings.allow_empty_buckets:
        shutil.rmtree(next(iter(shards)).parent)  # a refused input leaves nothing behind
        end = f"to {bucket.at_most}" if bucket.at_most else "or more"
        raise InputError(
            f"{settings.input}: no document of {bucket.longer_than + 1} {end} tokens; add some, cut long "
            "ones (--cut-long-documents), or use --allow-empty-buckets"
        )
    if not pools:
        return BucketSize(documents=0, tokens=0)
    prefix = str(output / bucket.name)
    joined = IndexedDatasetBuilder(get_bin_path(prefix), DType.optimal_dtype(encoder.vocab_size))
    for pool in pools:
        joined.add_index(pool)
    joined.finalize(get_idx_path(prefix))
    lengths = np.array(joined.sequence_lengths, dtype=np.int64)
    return BucketSize(documents=lengths.size, tokens=int(lengths.sum()))
