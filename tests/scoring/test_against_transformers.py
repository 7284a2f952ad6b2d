"""Megatron's scores equal transformers', in every layout and in both windows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_longrope2.scoring.hugging_face import HFScorer
from tests.evaluation.measure import measure_all


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama / "hf", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama / "hf")
    return measure_all(HFScorer(model), tokenizer, tiny_llama / "books")


@pytest.mark.parametrize(
    "layout", [(1, 1, 1), *(pytest.param(some, marks=pytest.mark.slow) for some in ((2, 2, 1), (2, 1, 2)))]
)
def test_equals_transformers(
    layout: tuple[int, int, int], measured: Callable[..., dict[str, Any]], expected: dict[str, Any]
) -> None:
    scores = measured(*layout)["scores"]
    assert list(leaves(scores["given"])) == pytest.approx(list(leaves(expected)), rel=1e-4)
    assert scores["again"] == scores["given"]
    assert scores["none"]["short"] == scores["given"]["short"]
    changed = scores["none"]["needles"]["by_length"]["256"]["perplexity"]
    assert changed != pytest.approx(scores["given"]["needles"]["by_length"]["256"]["perplexity"], rel=1e-3)
