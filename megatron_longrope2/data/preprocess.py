"""Text to pools: tokenize in parallel, sort documents by length, write Megatron's `.bin` and `.idx`."""

import multiprocessing
import os
import shutil
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tqdm import tqdm

from megatron_longrope2.data.documents import Slice, slices
from megatron_longrope2.data.encoder import TextEncoder, load_encoder
from megatron_longrope2.data.shards import Bucket, Recipe, Shard, build_shard
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, replacing, sha256, write_json

FORMAT = "longrope2-pools/1"


@dataclass(frozen=True)
class PreprocessConfig:
    """One data preparation job.

    Attributes:
        input: a `.txt`, `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`, or a folder of them.
        output: folder to make, with `<bucket>.bin`, `<bucket>.idx` and `manifest.json`.
        tokenizer: see `load_encoder`.
        original_length: documents of at most this many tokens are the short bucket.
        long_buckets: upper ends, in tokens, of the buckets above it; documents longer than the last are
            dropped and counted. Empty: one bucket "long" without an end.
        text_field, cut_long_documents: see `Recipe`.
        add_bos: put the tokenizer's BOS before every document.
        allow_empty_buckets: write what there is where a bucket gets no document, instead of refusing.
        workers: processes that tokenize.
        shard_bytes: input handled at a time by a worker; a run that was stopped repeats at most this much.
    """

    input: str
    output: str
    tokenizer: str
    original_length: int
    long_buckets: tuple[int, ...] = ()
    text_field: str = "text"
    add_bos: bool = False
    cut_long_documents: bool = False
    allow_empty_buckets: bool = False
    workers: int = 1
    shard_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        for name, least in (("original_length", 2), ("workers", 1), ("shard_bytes", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is less than {least}")
        ends = [self.original_length, *self.long_buckets]
        if sorted(set(ends)) != ends:
            raise InputError(f"long_buckets: {ends} do not rise from original_length; sort them")

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """`short`, then `long`, or `long-<upper end>` for each of several."""
        short = Bucket("short", 0, self.original_length)
        if not self.long_buckets:
            return short, Bucket("long", self.original_length, None)
        starts = (self.original_length, *self.long_buckets)
        ends = zip(starts, self.long_buckets, strict=False)
        return short, *(Bucket(f"long-{end}", start, end) for start, end in ends)


def preprocess(config: PreprocessConfig) -> dict[str, Any]:
    """Run a job and return its manifest; finished shards of a run that was stopped are used again.

    Memory is bounded by a batch of documents (or the largest one) a worker. The disk holds the tokens twice
    for a while: once as shards, in a hidden folder beside the output, and once as pools.

    Raises:
        InputError: bad input, a bucket without documents, or a disk that cannot be written.
    """
    output = Path(config.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already and is not empty; choose another or remove it")
    encoder = load_encoder(config.tokenizer)
    if config.add_bos and encoder.bos_id is None:
        raise InputError(f"{encoder.path}: bos_token: the tokenizer has none; leave out --add-bos")
    recipe = Recipe(
        tokenizer=config.tokenizer,
        tokenizer_sha256=encoder.sha256,
        original_length=config.original_length,
        buckets=config.buckets,
        text_field=config.text_field,
        bos_id=encoder.bos_id if config.add_bos else None,
        eos_id=encoder.eos_id,
        cut_long_documents=config.cut_long_documents,
    )
    parts = slices(config.input, config.shard_bytes)
    shards = list(_group(parts, config.shard_bytes))
    folder = output.parent / f".{output.name}.shards"
    folders = _build_shards(shards, recipe, folder, config.workers)
    if not config.allow_empty_buckets:
        try:
            _refuse_empty(config, folders)
        except InputError:
            shutil.rmtree(folder)  # a refused input is not one to go on with
            raise
    manifest = _merge(folders, config, encoder, input_files={part.path for part in parts})
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


def _build_shards(shards: list[Shard], recipe: Recipe, folder: Path, workers: int) -> list[Path]:
    """Build the shards that are not there yet; return all their folders in the order of the input."""
    folders = [folder / shard.key(recipe) for shard in shards]
    todo = [(shard, place) for shard, place in zip(shards, folders, strict=True) if not place.exists()]
    done = sum(shard.size for shard in shards) - sum(shard.size for shard, _ in todo)
    if not todo:
        return folders
    # The workers are the parallelism; the tokenizer's own threads would fight them and do not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        min(workers, len(todo)), mp_context=context, initializer=_end_with_parent
    ) as executor:
        waiting: deque[tuple[Future[None], int]] = deque(
            (executor.submit(build_shard, shard, recipe, place), shard.size) for shard, place in todo
        )
        try:
            with tqdm(
                total=sum(shard.size for shard in shards),
                initial=done,
                unit="B",
                unit_scale=True,
                desc="tokenize",
            ) as bar:
                while waiting:
                    future, size = waiting.popleft()
                    future.result()
                    bar.update(size)
        except BrokenProcessPool as error:
            raise InputError(
                f"{folder}: a worker was killed (out of memory?); run the same command again to go on, with "
                "fewer workers"
            ) from error
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
    return folders


def _end_with_parent() -> None:
    """Have this worker stop when the main process is killed; it would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _merge(
    folders: list[Path], config: PreprocessConfig, encoder: TextEncoder, *, input_files: set[str]
) -> dict[str, Any]:
    counts = sum((Counter(read_json(folder / "counts.json")) for folder in folders), Counter())
    tallies = {bucket.name: _documents_and_tokens(folders, bucket) for bucket in config.buckets}
    output = Path(config.output)
    entries = []
    with replacing(output) as partial:
        partial.mkdir()
        for bucket in tqdm(config.buckets, desc="merge", unit="bucket"):
            documents, tokens = tallies[bucket.name]
            entry: dict[str, Any] = {
                "name": bucket.name,
                "longer_than": bucket.longer_than,
                "at_most": bucket.at_most,
                "documents": documents,
                "tokens": tokens,
            }
            if documents:
                entry |= _merge_bucket(folders, bucket, partial, encoder.vocab_size)
            entries.append(entry)
        manifest = {
            "format": FORMAT,
            "original_length": config.original_length,
            "buckets": entries,
            "documents": counts["documents"],
            "cut_long_documents": config.cut_long_documents,
            "documents_cut": counts["cut"],
            "documents_too_long": counts["too_long"],
            "tokens_too_long": counts["too_long_tokens"],
            "add_bos": config.add_bos,
            "tokenizer": {
                "kind": encoder.kind,
                "path": encoder.path,
                "sha256": encoder.sha256,
                "vocab_size": encoder.vocab_size,
                "bos_id": encoder.bos_id,
                "eos_id": encoder.eos_id,
            },
            "input": {
                "path": config.input,
                "files": len(input_files),
                "bytes": sum(os.path.getsize(path) for path in input_files),
            },
        }
        write_json(partial / "manifest.json", manifest)
    return manifest


def _documents_and_tokens(folders: list[Path], bucket: Bucket) -> tuple[int, int]:
    documents = tokens = 0
    for folder in folders:
        lengths = np.fromfile(folder / f"{bucket.name}.lengths", dtype=np.int32)
        documents += len(lengths)
        tokens += int(lengths.sum(dtype=np.int64))
    return documents, tokens


def _refuse_empty(config: PreprocessConfig, folders: list[Path]) -> None:
    tallies = {bucket.name: _documents_and_tokens(folders, bucket) for bucket in config.buckets}
    for bucket in config.buckets:
        if tallies[bucket.name][0]:
            continue
        if bucket.longer_than:
            end = f" and at most {bucket.at_most}" if bucket.at_most else ""
            raise InputError(
                f"{config.input}: no document of more than {bucket.longer_than} tokens{end}; add longer "
                "texts, or allow empty buckets"
            )
        raise InputError(
            f"{config.input}: no document of at most {config.original_length} tokens; add shorter texts, cut "
            "the long ones (--cut-long-documents), or allow empty buckets"
        )


def _merge_bucket(folders: list[Path], bucket: Bucket, output: Path, vocab_size: int) -> dict[str, str]:
    """Concatenate a bucket's shards as Megatron's `add_index` would, without reading an index for each."""
    prefix = output / bucket.name
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for folder in folders:
        with (folder / f"{bucket.name}.tokens").open("rb") as tokens:
            shutil.copyfileobj(tokens, builder.data_file, 1 << 20)
        lengths = np.fromfile(folder / f"{bucket.name}.lengths", dtype=np.int32)
        builder.sequence_lengths.extend(lengths.tolist())
    builder.document_indices = list(range(len(builder.sequence_lengths) + 1))
    builder.finalize(f"{prefix}.idx")
    return {f"{kind}_sha256": sha256(Path(f"{prefix}.{kind}")) for kind in ("bin", "idx")}
