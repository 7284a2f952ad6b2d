"""Generation with a cache equals recomputation at every step: below, above and across the boundary."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_longrope2 import device

device.install()

from megatron_longrope2.evaluation.generation import row_memory
from megatron_longrope2.model.dims import ModelDims
from tests.evaluation.tiny_llama import prompts

NEW = 12
DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation.md"
MODELS = {
    "LLaMA3-8B": ModelDims("llama3-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192),
    "Phi3-mini": ModelDims("phi3-mini", 32, 3072, 8192, 32, 32, 96, 32064, 2048),
}


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> list[tuple[list[int], torch.Tensor]]:
    """Greedy tokens and logits [NEW, vocabulary] of transformers without a cache, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama / "hf", dtype="float32").eval()
    results = []
    for prompt in prompts():
        tokens, logits = list(prompt), []
        for _ in range(NEW):
            with torch.no_grad():
                logits.append(model(torch.tensor([tokens]), use_cache=False).logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
        results.append((tokens[len(prompt) :], torch.stack(logits)))
    return results


@pytest.fixture(scope="module")
def single(measured: Callable[..., dict[str, Any]]) -> Any:
    return measured(1, 1, 1)["generation"]


def test_equals_recomputation(single: Any, reference: list[tuple[list[int], torch.Tensor]]) -> None:
    for tokens, logits, (wanted, wanted_logits) in zip(
        single["tokens"], single["logits"], reference, strict=True
    ):
        assert tokens == wanted
        torch.testing.assert_close(torch.tensor(logits)[:, 0], wanted_logits, rtol=0, atol=1e-4)
    # In batches of as many prompts as fit into memory, too.
    assert single["together"] == single["tokens"]


def test_a_prompt_in_chunks(single: Any) -> None:
    """Chunks of 7 tokens end below the original length, at it, and beyond it."""
    assert single["chunked"] == single["tokens"]
    for found, wanted in zip(single["chunked_logits"], single["logits"], strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=0, atol=1e-4)


@pytest.mark.parametrize("split", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_memory_of_a_prompt(name: str, split: int) -> None:
    """At 128K tokens in bf16, as docs/evaluation.md has it; read whole it would take far more."""
    dims = MODELS[name]
    whole, chunked = (2 * row_memory(dims, 32, split, 131072, chunk) / 1e9 for chunk in (131072, 8192))
    cache = 2 * 131072 * 2 * 32 * dims.key_value_size / split / 1e9
    assert f"| {name}, TP{split} | {chunked:.1f} GB | {cache:.1f} GB |" in DOCUMENT.read_text()
    assert whole - chunked > 7


def test_the_boundary_matters(tiny_llama: Path, reference: list[tuple[list[int], torch.Tensor]]) -> None:
    """Otherwise the test above could not fail: the cached keys of the short window give other logits."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama / "hf", dtype="float32").eval()
    cached = model.generate(
        torch.tensor([prompts()[1]]),
        max_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    difference = (torch.cat(list(cached.logits)) - reference[1][1]).abs().amax(1)
    assert difference[:7].max() < 1e-3
    assert difference[7:].max() > 0.1


def test_the_last_token_is_the_one_that_ends_a_row(single: Any) -> None:
    assert single["stopped"] == single["tokens"][1][:4]


def test_sampling(single: Any) -> None:
    tokens = [row[:8] for row in single["tokens"]]
    assert single["sampled"] != tokens
    assert single["top_1"] == tokens


def test_refusals(single: Any) -> None:
    assert single["too_long"] == (
        "prompt 0: 250 tokens and 7 new ones are longer than the target length of 256; "
        "shorten it or use factors for a longer target"
    )
    assert single["empty"] == "prompt 1: is empty; give at least one token"


@pytest.mark.slow
def test_layouts_agree(single: Any, measured: Callable[..., dict[str, Any]]) -> None:
    split = measured(2, 2, 1)["generation"]
    assert split["tokens"] == split["chunked"] == single["tokens"]
    assert split["sampled"] == single["sampled"]
    for logits, wanted in zip(split["logits"], single["logits"], strict=True):
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(wanted), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_context_parallelism_is_refused(measured: Callable[..., dict[str, Any]]) -> None:
    wanted = "generation: load the model without context and sequence parallelism"
    assert measured(2, 1, 2)["generation"] == wanted
