"""Text to pools: tokenize in parallel, sort documents by length, write Megatron's `.bin` and `.idx`.

Workers turn *shards*, which are a few slices of the input each, into pools of their own; these are then
joined. A shard's folder has a pool for each length bucket and `counts.json`. Its name is a hash of everything
that decides its content, so any later run that would make the same shard uses the finished one.

The ranks of a job share the folder of the shards and nothing else: the shards are dealt to them in turn, and
the first rank joins them. Where buckets have budgets, the shards are in a random order, and each bucket gets
the first documents in this order that fill it. What the finished shards at its beginning hold tells every
worker what it can leave out; this saves work, but a bucket's documents are the same without it.
"""

import contextlib
import gc
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple
from functools import lru_cache
from itertools import takewhile
from operator import attrgetter
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import (
    DType,
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from tqdm import tqdm

from megatron_longrope2.data.documents import Slice, read_slice, slices
from megatron_longrope2.data.manifest import BucketSize, Manifest, load_manifest
from megatron_longrope2.data.selection import Selection
from megatron_longrope2.data.settings import Bucket, PreprocessSettings
from megatron_longrope2.data.tokenizer import TextEncoder, load_encoder
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, replacing, write_json

# Text is handed to the tokenizer in batches of about this many characters.
_BATCH_CHARACTERS = 1 << 20

# Where buckets have budgets, no worker is this many rounds of shards ahead of the slowest.
_LEAD = 4

# Seconds after which a rank looks again for what others have finished.
_POLL = 0.2

Shard = list[Slice]

# One tokenizer a process, however many shards it builds.
load_encoder_once = lru_cache(maxsize=1)(load_encoder)


def preprocess(settings: PreprocessSettings, selection: Selection | None = None) -> Manifest:
    """Write the pools and return their manifest; finished shards of a run that was stopped are used again.

    A worker's memory holds a batch of documents, or the largest single one. The disk holds the tokens twice
    for a while: as shards, in a hidden folder beside the output, and as pools.

    In a job of several ranks (RANK and WORLD_SIZE) all of them call it, with the same arguments, and see the
    same file system.

    Args:
        selection: what the buckets take. None: everything.

    Raises:
        InputError: bad input, a bucket without documents, or a disk that cannot be written.
    """
    folder = shards_folder(settings.output)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    marks = [folder / f"rank-{other}" for other in range(1, world)]
    if rank == 0:
        for mark in marks:
            mark.unlink(missing_ok=True)
    with replacing(settings.output) if rank == 0 else contextlib.nullcontext() as partial:
        encoder = load_encoder_once(settings.tokenizer)
        if settings.add_bos and encoder.bos_id is None:
            raise InputError(f"{encoder.file}: bos_token: the tokenizer has none; leave out --add-bos")
        shard_bytes = int(settings.shard_size * (1 << 20))
        groups = list(_groups(slices(settings.input, shard_bytes), attrgetter("size"), shard_bytes))
        if selection:
            random.Random("shards").shuffle(groups)
        shards = {folder / _key(shard, settings, encoder, selection): shard for shard in groups}
        _build_shards(shards, settings, selection, rank, world)
        if partial is None:
            return _wait_for_first_rank(settings.output, marks[rank - 1])
        while not all(mark.exists() for mark in marks):
            time.sleep(_POLL)
        partial.mkdir()
        manifest = _join_shards(shards, settings, selection, partial)
    shutil.rmtree(folder, ignore_errors=True)
    return manifest


def shards_folder(output: Path) -> Path:
    """Where the shards are of what is written to `output`."""
    return output.with_name(f".{output.name}.shards")


def build_shard(
    shard: Shard, settings: PreprocessSettings, folder: Path, selection: Selection | None = None
) -> int:
    """Tokenize a shard into `folder`, which appears when it is complete; return how many tokens that took.

    `counts.json` holds the counts of its part in a `Manifest`.

    Args:
        selection: what the buckets may need of this shard. None: everything.

    Raises:
        InputError: unreadable text, or a disk that cannot be written.
    """
    encoder = load_encoder_once(settings.tokenizer)
    dtype = DType.optimal_dtype(encoder.vocab_size)
    counts: Counter[str] = Counter()
    buckets = settings.buckets
    taken = [0] * len(buckets)
    tokenized = 0

    def left() -> Selection | None:
        return selection and selection.without(taken)

    def add(place: int, document: np.ndarray) -> None:
        if not selection or taken[place] < selection.room[place]:
            pools[place].add_document(document, [document.size])
            taken[place] += document.size

    with replacing(folder) as partial:
        partial.mkdir()
        pools = [IndexedDatasetBuilder(get_bin_path(f"{partial}/{bucket.name}"), dtype) for bucket in buckets]
        for tokens in _documents(shard, settings, encoder, left):
            tokenized += tokens.size
            counts["documents"] += 1
            place = next((i for i, bucket in enumerate(buckets) if bucket.holds(tokens.size)), None)
            if place is None:
                counts.update(documents_too_long=1, tokens_too_long=tokens.size)
            else:
                add(place, tokens)
            if settings.cut_long_documents and tokens.size > settings.original_length:
                counts["documents_cut"] += 1
                for piece in cut(tokens, settings.original_length, keep_first=settings.add_bos):
                    add(0, piece)
        for bucket, pool in zip(buckets, pools, strict=True):
            pool.finalize(get_idx_path(f"{partial}/{bucket.name}"))
        write_json(partial / "counts.json", counts)
    return tokenized


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


def _key(
    shard: Shard, settings: PreprocessSettings, encoder: TextEncoder, selection: Selection | None
) -> str:
    """Hash of what decides the content, with sizes and modification times of the input files."""
    stats = [Path(part.path).stat() for part in shard]
    content = [
        settings.content,
        [encoder.sha256, encoder.bos_id, encoder.eos_id],
        [(*astuple(part), stat.st_size, stat.st_mtime_ns) for part, stat in zip(shard, stats, strict=True)],
        selection and astuple(selection),
    ]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:32]


def _build_shards(
    shards: Mapping[Path, Shard],
    settings: PreprocessSettings,
    selection: Selection | None,
    rank: int,
    world: int,
) -> None:
    """Build this rank's share of the shards, but for those that are there, until no bucket needs more."""
    # The workers are the parallelism; the tokenizer's own threads would compete and do not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folders = list(shards)
    missing = deque(place for place in range(rank, len(folders), world) if not folders[place].exists())
    lead = _LEAD * settings.workers * world if selection else len(folders)
    begun = 0  # how many shards at the beginning are finished, by any rank
    running: dict[Future[int], Path] = {}
    executor = ProcessPoolExecutor(
        min(settings.workers, len(missing)) or 1,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_end_with_parent,
    )
    total, left = _size(shards.values()), _size(shards[folders[place]] for place in missing)
    try:
        with tqdm(total=total, initial=total - left, unit="B", unit_scale=True, desc="tokenize") as bar:
            while missing or running:
                while selection and begun < len(folders) and folders[begun].exists():
                    selection = selection.without(_tokens(folders[begun], settings))
                    begun += 1
                if selection and selection.full:
                    break
                while missing and len(running) < settings.workers and missing[0] < begun + lead:
                    folder = folders[missing.popleft()]
                    job = executor.submit(build_shard, shards[folder], settings, folder, selection)
                    running[job] = folder
                if not running:
                    time.sleep(_POLL)
                for job in wait(running, _POLL, FIRST_COMPLETED).done:
                    job.result()
                    bar.update(_size([shards[running.pop(job)]]))
    except BrokenProcessPool as error:
        raise InputError(
            f"{settings.output}: a worker was killed (out of memory?); run the same command again to resume, "
            "with fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _tokens(folder: Path, settings: PreprocessSettings) -> list[int]:
    """Tokens of each bucket in a shard."""
    size = DType.size(DType.optimal_dtype(load_encoder_once(settings.tokenizer).vocab_size))
    return [os.path.getsize(get_bin_path(f"{folder}/{bucket.name}")) // size for bucket in settings.buckets]


def _wait_for_first_rank(output: Path, mark: Path) -> Manifest:
    """Tell the first rank that this one has finished, and wait until it has joined the shards."""
    while (manifest := load_manifest(output)) is None:
        # The first rank removes marks of an earlier run when it starts, and the folder when all is done.
        with contextlib.suppress(OSError):
            mark.touch()
        time.sleep(_POLL)
    return manifest


def _end_with_parent() -> None:
    """Stop this worker when the main process is killed; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _documents(
    shard: Shard, settings: PreprocessSettings, encoder: TextEncoder, left: Callable[[], Selection | None]
) -> Iterator[np.ndarray]:
    """The tokens of the documents that a bucket may need; `left` says what they need by now."""
    bos = np.array([encoder.bos_id] if settings.add_bos else [], dtype=np.int32)
    eos = np.array([encoder.eos_id], dtype=np.int32)
    selection = left()

    def wanted(fewest: int, most: int) -> bool:
        return selection is None or selection.wanted(fewest, most)

    texts = (document.text for part in shard for document in read_slice(part, settings.text_field, wanted))
    for batch in _groups(texts, len, _BATCH_CHARACTERS):
        for ids in encoder.encode(batch):
            yield np.concatenate([bos, ids, eos])
        selection = left()
        if selection and selection.full:
            return


def _join_shards(
    shards: Mapping[Path, Shard], settings: PreprocessSettings, selection: Selection | None, output: Path
) -> Manifest:
    """Join the finished shards at the beginning of the order, which are enough or all there are."""
    encoder = load_encoder_once(settings.tokenizer)
    finished = list(takewhile(Path.exists, shards))
    budgets: dict[str, int] = {}
    counts: Counter[str] = Counter()
    if selection:
        budgets = {bucket.name: room for bucket, room in zip(settings.buckets, selection.room, strict=True)}
    else:
        counts = sum((Counter(read_json(folder / "counts.json")) for folder in finished), Counter())
    # Joining collects garbage after each shard, which takes half a second if it looks at all modules.
    gc.freeze()
    buckets = {
        bucket.name: _join(bucket, finished, output, settings, encoder, budgets.get(bucket.name))
        for bucket in tqdm(settings.buckets, desc="join")
    }
    manifest = Manifest(
        settings=settings,
        tokenizer=encoder.file,
        tokenizer_sha256=encoder.sha256,
        buckets=buckets,
        budgets=budgets,
        **counts,
    )
    write_json(output / "manifest.json", manifest.model_dump(mode="json"))
    return manifest


def _join(
    bucket: Bucket,
    shards: Iterable[Path],
    output: Path,
    settings: PreprocessSettings,
    encoder: TextEncoder,
    budget: int | None,
) -> BucketSize:
    """Join the shards' pools of a bucket to one in `output`; an empty one is refused or not written.

    Args:
        budget: tokens after which no further document is taken. None: all are.
    """
    pools = [str(folder / bucket.name) for folder in shards]
    pools = [pool for pool in pools if os.path.getsize(get_bin_path(pool))]
    if not pools and not settings.allow_empty_buckets:
        shutil.rmtree(next(iter(shards)).parent)  # a refused input leaves nothing behind
        end = f"to {bucket.at_most}" if bucket.at_most else "or more"
        raise InputError(
            f"{settings.input}: no document of {bucket.longer_than + 1} {end} tokens; add some, cut long "
            "ones (--cut-long-documents), or use --allow-empty-buckets"
        )
    if not pools or budget == 0:
        return BucketSize(documents=0, tokens=0)
    prefix = str(output / bucket.name)
    joined = IndexedDatasetBuilder(get_bin_path(prefix), DType.optimal_dtype(encoder.vocab_size))
    left = math.inf if budget is None else budget
    for pool in pools:
        tokens = os.path.getsize(get_bin_path(pool)) // DType.size(joined.dtype)
        if tokens <= left:
            joined.add_index(pool)
            left -= tokens
        else:
            documents = IndexedDataset(pool, multimodal=False, mmap=True)
            for document in map(documents.__getitem__, range(len(documents))):
                joined.add_document(document, [document.size])
                left -= document.size
                if left <= 0:
                    break
        if left <= 0:
            break
    joined.finalize(get_idx_path(prefix))
    lengths = np.array(joined.sequence_lengths, dtype=np.int64)
    return BucketSize(documents=lengths.size, tokens=int(lengths.sum()))
