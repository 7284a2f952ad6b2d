"""Needle samples as training documents."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from megatron_longrope2.data.documents import read_books
from megatron_longrope2.data.needles import NeedleSampler
from megatron_longrope2.data.pools import write_documents
from megatron_longrope2.data.settings import NeedleSettings
from megatron_longrope2.data.tokenizer import load_tokenizer


def write_needles(settings: NeedleSettings) -> tuple[int, int]:
    """Write a pool of needle samples; return how many there are, and the number of books they are from.

    Raises:
        InputError: as `load_tokenizer`, `read_books`, `NeedleSampler` and `write_documents`.
    """
    tokenizer = load_tokenizer(settings.tokenizer)
    books = read_books(settings.books)
    sampler = NeedleSampler(tokenizer, books, seed=settings.seed, keys=settings.keys)
    used = set()

    def documents() -> Iterator[np.ndarray]:
        samples = sampler.samples(settings.samples, settings.lengths, settings.needle_depths)
        for sample in tqdm(samples, desc="needles", total=settings.samples, unit="sample"):
            used.add(sample.book)
            yield sample.tokens.numpy()

    count = write_documents(settings.output, documents(), vocab_size=len(tokenizer))
    return count, len(used)
