"""Text to pools: tokenize in parallel, sort documents by length, write Megatron's `.bin` and `.idx`."""

import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tqdm import tqdm

from megatron_longrope2.data.documents import Slice, slices
from megatron_longrope2.data.encoder import load_encoder
from megatron_longrope2.data.settings import Bucket, PreprocessSettings
from megatron_longrope2.data.shards import Shard, build_shard
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, replacing, sha256, write_json

FORMAT = "longrope2-pools/1"


def preprocess(settings: PreprocessSettings) -> dict[str, Any]:
    """Write the pools and return their manifest; finished shards of a run that was stopped are used again.

    A worker's memory holds a batch of documents, or the largest single one. The disk holds the tokens twice
    for a while: as shards, in a hidden folder beside the output, and as pools.

    Raises:
        InputError: bad input, a bucket without documents, or a disk that cannot be written.
    """
    output = settings.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already and is not empty; choose another or remove it")
    encoder = load_encoder(settings.tokenizer)
    if settings.add_bos and encoder.bos_id is None:
        raise InputError(f"{encoder.path}: bos_token: the tokenizer has none; leave out --add-bos")
    shard_bytes = int(settings.shard_size * (1 << 20))
    parts = slices(settings.input, shard_bytes)
    folder = output.with_name(f".{output.name}.shards")
    shards = {folder / shard.key(settings, encoder): shard for shard in _group(parts, shard_bytes)}
    _build_shards(shards, settings)
    counts = sum((Counter(read_json(place / "counts.json")) for place in shards), Counter())
    if not settings.allow_empty_buckets:
        try:
            _refuse_empty(settings, counts)
        except InputError:
            shutil.rmtree(folder)  # a refused input leaves nothing behind
            raise
    files = {part.path for part in parts}
    with replacing(output) as partial:
        partial.mkdir()
        manifest = {
            "format": FORMAT,
            "original_length": settings.original_length,
            "buckets": [
                asdict(bucket)
                | {key: counts[f"{bucket.name} {key}"] for key in ("documents", "tokens")}
                | _merge_bucket(list(shards), bucket, partial, encoder.vocab_size)
                for bucket in tqdm(settings.buckets, desc="merge", unit="bucket")
            ],
            "documents": counts["documents"],
            "cut_long_documents": settings.cut_long_documents,
            "documents_cut": counts["cut"],
            "documents_too_long": counts["too_long"],
            "tokens_too_long": counts["too_long_tokens"],
            "add_bos": settings.add_bos,
            "tokenizer": encoder.identity,
            "input": {
                "path": str(settings.input),
                "files": len(files),
                "bytes": sum(os.path.getsize(path) for path in files),
            },
        }
        write_json(partial / "manifest.json", manifest)
    shutil.rmtree(folder)
    return manifest


def _group(parts: list[Slice], shard_bytes: int) -> Iterator[Shard]:
    group: list[Slice] = []
    size = 0
    for part in parts:
        if group and size + part.size > shard_bytes:
            yield Shard(tuple(group))
            group, size = [], 0
        group.append(part)
        size += part.size
    yield Shard(tuple(group))


def _build_shards(shards: dict[Path, Shard], settings: PreprocessSettings) -> None:
    """Build the shards whose folders are not there yet."""
    missing = {folder: shard for folder, shard in shards.items() if not folder.exists()}
    if not missing:
        return
    total = sum(shard.size for shard in shards.values())
    done = total - sum(shard.size for shard in missing.values())
    # The workers are the parallelism; the tokenizer's own threads would compete and do not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    executor = ProcessPoolExecutor(
        min(settings.workers, len(missing)),
        mp_context=multiprocessing.get_context("fork"),
        initializer=_end_with_parent,
    )
    try:
        with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc="tokenize") as bar:
            built = executor.map(build_shard, missing.values(), repeat(settings), missing)
            for shard, _ in zip(missing.values(), built, strict=True):
                bar.update(shard.size)
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


def _refuse_empty(settings: PreprocessSettings, counts: Counter[str]) -> None:
    for bucket in settings.buckets:
        if counts[f"{bucket.name} documents"]:
            continue
        if bucket.longer_than:
            end = f" and at most {bucket.at_most}" if bucket.at_most else ""
            missing, fix = f"more than {bucket.longer_than} tokens{end}", "add longer texts"
        else:
            missing = f"at most {bucket.at_most} tokens"
            fix = "add shorter texts, cut the long ones (--cut-long-documents)"
        raise InputError(f"{settings.input}: no document of {missing}; {fix}, or use --allow-empty-buckets")


def _merge_bucket(folders: list[Path], bucket: Bucket, output: Path, vocab_size: int) -> dict[str, str]:
    """Concatenate a bucket's shards into a pool, if it has any document; return the SHA-256 of its files.

    Megatron's `add_index` would do the same, but needs an index file for every shard.
    """
    lengths = np.concatenate([np.fromfile(folder / f"{bucket.name}.lengths", np.int32) for folder in folders])
    if not lengths.size:
        return {}
    prefix = output / bucket.name
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for folder in folders:
        with (folder / f"{bucket.name}.tokens").open("rb") as tokens:
            shutil.copyfileobj(tokens, builder.data_file, 1 << 20)
    builder.sequence_lengths.extend(lengths.tolist())
    builder.document_indices = list(range(len(lengths) + 1))
    builder.finalize(f"{prefix}.idx")
    return {f"{kind}_sha256": sha256(Path(f"{prefix}.{kind}")) for kind in ("bin", "idx")}
