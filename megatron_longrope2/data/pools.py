"""A pool: the documents of one source and one length bucket, as Megatron's `.bin` and `.idx`."""

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import (
    DType,
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)

from megatron_longrope2.data.tokenizer import check_same_tokenizer
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, replacing
from megatron_longrope2.rope import Window

# The head of an .idx file: magic, version, token type, sequence count, document count.
_HEAD = struct.Struct("<9sQBQQ")


@dataclass(frozen=True)
class Pool:
    """Documents for one window, and their share of the segments: `weight` of every `sum(weights)`.

    Attributes:
        path_prefix: the pool's path without `.bin` and `.idx`.
        window: "short" (documents of at most `original_length` tokens) or "long" (longer ones).
        weight: a whole number of at least 0; a pool of weight 0 is not read.
    """

    path_prefix: str
    window: Window
    weight: int

    def __post_init__(self) -> None:
        if self.window not in ("short", "long"):
            raise InputError(f'{self.path_prefix}: window: "{self.window}" is not "short" or "long"')
        if self.weight != int(self.weight) or self.weight < 0:
            raise InputError(
                f"{self.path_prefix}: weight: {self.weight} is not a whole number >= 0; "
                "scale the weights up (0.3 : 0.7 is 3 : 7)"
            )


def write_documents(path_prefix: str | Path, documents: Iterable[np.ndarray], *, vocab_size: int) -> int:
    """Write token arrays as a pool, each as one Megatron document; return how many there are.

    Args:
        path_prefix: where to write, without `.bin` and `.idx`.
        documents: integer arrays [tokens], already with BOS and EOS where they belong.
        vocab_size: size of the tokenizer's vocabulary, which decides between 2 and 4 bytes a token.

    Raises:
        InputError: a document is empty or holds an id outside the vocabulary, or the disk is full.
    """
    prefix = str(path_prefix)
    with replacing(get_bin_path(prefix)) as partial_bin, replacing(get_idx_path(prefix)) as partial_idx:
        builder = IndexedDatasetBuilder(str(partial_bin), dtype=DType.optimal_dtype(vocab_size))
        for number, document in enumerate(documents):
            tokens = np.asarray(document)
            if not tokens.size:
                raise InputError(f"{prefix}: document {number}: has no token")
            if tokens.min() < 0 or tokens.max() >= vocab_size:
                raise InputError(
                    f"{prefix}: document {number}: token ids {tokens.min()}..{tokens.max()} do not fit "
                    f"a vocabulary of {vocab_size}"
                )
            builder.add_document(tokens, [tokens.size])
        builder.finalize(str(partial_idx))
    return len(builder.sequence_lengths)


def open_pool(
    path_prefix: str | Path, vocab_size: int | None = None, tokenizer: str | Path | None = None
) -> IndexedDataset:
    """Open a pool, memory-mapped.

    Args:
        path_prefix: its path without `.bin` and `.idx`.
        vocab_size: vocabulary size of the model that will read it. None: not checked.
        tokenizer: folder of the model's tokenizer. None: not checked.

    Raises:
        InputError: a file is missing, the index is corrupt, it contradicts the size of the data file, or the
            pool was made with another tokenizer than the model's.
    """
    prefix = str(path_prefix)
    for path in (get_bin_path(prefix), get_idx_path(prefix)):
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file; name the pool's path without .bin and .idx")
    _check_index(prefix)
    documents = IndexedDataset(prefix, multimodal=False, mmap=True)
    manifest = Path(prefix).with_name("manifest.json")
    if tokenizer is not None and manifest.exists():
        check_same_tokenizer(manifest, tokenizer)
    if vocab_size is not None:
        _check_vocabulary(prefix, documents, vocab_size)
    return documents


def _check_vocabulary(prefix: str, documents: IndexedDataset, vocab_size: int) -> None:
    """Compare it with the manifest's tokenizer, if there is one, and with the ids of the first documents."""
    manifest = Path(prefix).with_name("manifest.json")
    if manifest.exists():
        tokenizer = read_json(manifest)["tokenizer"]
        if tokenizer["vocab_size"] > vocab_size:
            raise InputError(
                f"{manifest}: tokenizer: has {tokenizer['vocab_size']} ids ({tokenizer['path']}), the "
                f"model's vocabulary {vocab_size}; preprocess the text with the model's tokenizer"
            )
    largest = max(int(documents[i].max()) for i in range(min(len(documents), 1000)))
    if largest >= vocab_size:
        raise InputError(
            f"{prefix}.bin: holds token id {largest}, the model's vocabulary has {vocab_size}; preprocess "
            "the text with the model's tokenizer"
        )


def _check_index(prefix: str) -> None:
    """Refuse a damaged index; upstream maps it as it is and would read a truncated copy as garbage tokens."""
    path = get_idx_path(prefix)
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        head = stream.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(b"MMIDIDX"):
            raise InputError(f"{path}: header: not a Megatron index file; preprocess the pool again")
        _, version, code, sequences, documents = _HEAD.unpack(head)
        if version != 1 or code not in {kind.value for kind in DType}:
            raise InputError(f"{path}: header: version {version}, token type {code} are unknown")
        if not sequences:
            raise InputError(f"{path}: holds no document; leave the pool out or give it weight 0")
        expected = _HEAD.size + 12 * sequences + 8 * documents
        if size != expected:
            raise InputError(
                f"{path}: is {size} bytes where its header says {expected}; the copy is cut off or "
                "corrupt: copy or preprocess it again"
            )
        lengths = np.fromfile(stream, dtype=np.int32, count=sequences)
    if lengths.min() < 1:
        raise InputError(f"{path}: holds a document of {lengths.min()} tokens; it is corrupt")
    held = os.path.getsize(get_bin_path(prefix))
    wanted = int(lengths.sum(dtype=np.int64)) * DType.size(int(code))
    if held != wanted:
        raise InputError(
            f"{get_bin_path(prefix)}: is {held} bytes where its index says {wanted}; the copy is cut off "
            "or belongs to another index: copy or preprocess it again"
        )
