"""Pools: the documents of one source and one length bucket each, as Megatron's `.bin` and `.idx`."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import (
    DType,
    IndexedDataset,
    IndexedDatasetBuilder,
    _IndexReader,
    get_bin_path,
    get_idx_path,
)

from megatron_longrope2.data.manifest import check_pool_tokenizer
from megatron_longrope2.errors import InputError, one_line
from megatron_longrope2.files import replacing


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
            if not tokens.size or tokens.min() < 0 or tokens.max() >= vocab_size:
                raise InputError(
                    f"{prefix}: document {number}: has no tokens, or ids that are not 0 to {vocab_size - 1}"
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
    # Read by itself first: where it is damaged, a half-made `IndexedDataset` would complain again as it goes.
    try:
        index = _IndexReader(get_idx_path(prefix), multimodal=False)
    except (AssertionError, ValueError, struct.error) as error:
        raise InputError(
            f"{prefix}.idx: cut off or corrupt ({one_line(error)}); copy or preprocess it again"
        ) from error
    if not len(index):
        raise InputError(f"{prefix}.idx: holds no document; leave the pool out or give it weight 0")
    held = os.path.getsize(get_bin_path(prefix))
    wanted = index.sequence_lengths.sum(dtype=np.int64) * index.dtype_size
    if held != wanted:
        raise InputError(
            f"{prefix}.bin: is {held} bytes where its index says {wanted}; the copy is cut off or belongs to "
            "another index: copy or preprocess it again"
        )
    if tokenizer is not None:
        check_pool_tokenizer(Path(prefix).parent, tokenizer)
    documents = IndexedDataset(prefix, multimodal=False, mmap=True)
    if vocab_size is not None:
        largest = max(int(documents[i].max(initial=0)) for i in range(min(len(documents), 1000)))
        if largest >= vocab_size:
            raise InputError(
                f"{prefix}.bin: holds token id {largest}, the model's vocabulary has {vocab_size}; "
                "preprocess the text with the model's tokenizer"
            )
    return documents
