"""The harness scores a text the same whatever is in its batch: each has its own window."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from megatron_longrope2 import hf
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.harness import HarnessTask, _transformers, run_harness


def requests() -> list[tuple[None, list[int], list[int]]]:
    """Texts of 30 to 120 tokens, in no order; the original length is 64."""
    rnd = random.Random(0)
    texts = [[rnd.randrange(400) for _ in range(length)] for length in (120, 30, 66, 64, 65, 100, 50)]
    return [(None, text[:-5], text[-5:]) for text in texts]


def scores(model: Any) -> list[float]:
    return [nll for nll, _ in model._loglikelihood_tokens(requests(), disable_tqdm=True)]


def test_a_batch_of_both_windows(tiny_llama: Path) -> None:
    folder = tiny_llama / "hf"
    tokenizer = load_tokenizer(folder)
    alone, together = (scores(_transformers(folder, tokenizer, 256, size, torch.float32)) for size in (1, 7))
    assert together == pytest.approx(alone, rel=1e-4)
    # The harness's own class gets them wrong, or the test above could not fail.
    theirs = HFLM(
        pretrained=hf.load(folder, dtype=torch.float32), tokenizer=tokenizer, max_length=256, batch_size=7
    )
    assert scores(theirs) != pytest.approx(alone, rel=1e-2)


def test_vllm_is_asked_for(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="vllm: not installed"):
        run_harness(tiny_llama / "hf", [HarnessTask("mmlu")], max_length=256, backend="vllm")
