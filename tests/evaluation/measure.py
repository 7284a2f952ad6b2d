"""The measurements that are compared between scorers, on the tiny model's two windows."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.data.documents import read_books
from megatron_longrope2.data.needles import NeedleSampler
from megatron_longrope2.evaluation.needle_grid import measure_needles
from megatron_longrope2.evaluation.perplexity import position_perplexity, sliding_perplexity, text_perplexity
from megatron_longrope2.scoring.samples import document_samples
from megatron_longrope2.scoring.scorer import Scorer
from tests.evaluation.tiny_llama import ORIGINAL, TARGET


def measure_all(scorer: Scorer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, Any]:
    books = read_books(folder)
    sampler = NeedleSampler(tokenizer, books, keys="held_out")
    grid = measure_needles(scorer, sampler, (128, TARGET), (0.0, 0.5), 2)
    short = document_samples(tokenizer, books, 3, ORIGINAL, seed=0)
    long = document_samples(tokenizer, books, 2, TARGET, seed=0)
    document = torch.tensor(tokenizer(books[0].text)["input_ids"][:200])
    buckets = position_perplexity(scorer, long, (1, 64, 128, 256))
    return {
        "needles": grid.to_dict(),
        "short": text_perplexity(scorer, short).to_dict(),
        "buckets": [[*key, value.to_dict()] for key, value in buckets.items()],
        "sliding": sliding_perplexity(scorer, [document], 96, 32).to_dict(),
    }
