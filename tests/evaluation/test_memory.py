"""No measurement holds logits of all tokens, nor a mask or scores of all pairs of tokens."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_longrope2 import device

device.install()

from megatron_longrope2.checkpoint.settings import VerifySettings
from megatron_longrope2.checkpoint.verify import compare_logits
from megatron_longrope2.evaluation.needle_grid import measure_needle
from megatron_longrope2.evaluation.perplexity import measure_perplexity
from megatron_longrope2.evaluation.settings import (
    CheckpointSettings,
    GenerationSettings,
    NeedleSettings,
    PerplexitySettings,
    TextSettings,
)
from megatron_longrope2.evaluation.subject import LoadedSubject, open_subject
from megatron_longrope2.model.loading import unload_model
from megatron_longrope2.model.settings import LayoutSettings
from tests.evaluation.tiny_llama import LONG

VOCABULARY = 400  # smaller than LONG: a tokens x tokens tensor is larger still
TOO_LARGE = LONG * VOCABULARY


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def largest(action: Callable[[], object]) -> int:
    with Largest() as mode:
        action()
    return mode.elements


@pytest.fixture(scope="module", params=["load", "hf_dir"])
def subject(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[LoadedSubject]:
    folder = tiny_llama / ("megatron" if request.param == "load" else "hf")
    factors = str(tiny_llama / "long.json")
    yield open_subject(CheckpointSettings(**{request.param: folder}, rope_factors=factors), LayoutSettings())
    unload_model()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_needles(subject: LoadedSubject, tiny_llama: Path) -> None:
    texts, settings = TextSettings(books=tiny_llama / "books"), NeedleSettings(lengths=(LONG,), depths=1)
    assert largest(lambda: measure_needle(subject, texts, settings)) < TOO_LARGE


def test_perplexity_by_position(subject: LoadedSubject, tiny_llama: Path) -> None:
    texts = TextSettings(books=tiny_llama / "books")
    settings = PerplexitySettings(short_texts=0, long_texts=1, windows=(LONG,), stride=512)
    assert largest(lambda: measure_perplexity(subject, texts, settings)) < TOO_LARGE


@pytest.mark.parametrize("kind", ["megatron", "hf"])
def test_verification(kind: str, tiny_llama: Path) -> None:
    folder = tiny_llama / kind
    # The tiny model's own target is shorter; what is measured is the size of tensors.
    settings = VerifySettings(lengths=(LONG,))
    try:
        assert largest(lambda: compare_logits(folder, folder, settings)) < TOO_LARGE
    finally:
        unload_model()


@pytest.mark.parametrize(("chunk", "fits"), [(32, True), (LONG, False)])
def test_a_prompt_in_chunks(chunk: int, fits: bool, tiny_llama: Path) -> None:
    """Nothing is as large as the hidden states of the whole prompt, not even a mask."""
    checkpoint = CheckpointSettings(load=tiny_llama / "megatron", rope_factors=str(tiny_llama / "long.json"))
    settings = GenerationSettings(prefill_chunk=chunk)
    try:
        generate = open_subject(checkpoint, LayoutSettings(), settings).generate
        assert (largest(lambda: generate([[7] * (LONG - 2)], 2)) < LONG * 64) == fits
    finally:
        unload_model()


def test_a_plain_forward_pass_is_too_large(subject: LoadedSubject) -> None:
    """Otherwise the tests above could not fail."""
    tokens = torch.zeros(1, LONG, dtype=torch.int64)
    model: Any = subject.scorer.model  # type: ignore[attr-defined]
    with torch.no_grad():
        if hasattr(model, "chunks"):
            found = largest(lambda: model.chunks[0](tokens, torch.arange(LONG)[None], None))
        else:
            found = largest(lambda: model(tokens))
    assert found >= TOO_LARGE
