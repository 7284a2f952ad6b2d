"""The harness's tasks give the same results on a Megatron checkpoint, in every layout, as on its export."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from megatron_longrope2 import hf
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.harness import vllm_language_model
from megatron_longrope2.evaluation.hf_lm import OneWindowABatch
from megatron_longrope2.evaluation.settings import CheckpointSettings, GenerationSettings, LayoutSettings
from megatron_longrope2.evaluation.subject import open_subject
from tests.evaluation.harness_tasks import TASKS, ruler, run_tasks, small_harness
from tests.evaluation.tiny_llama import TARGET

LAYOUTS = [(1, 1, 1), *(pytest.param(layout, marks=pytest.mark.slow) for layout in ((2, 2, 1), (2, 1, 2)))]


@pytest.fixture(scope="module")
def exported(tiny_llama: Path) -> dict[str, Any]:
    """The tasks and RULER on the Hugging Face folder, several documents at once."""
    four = GenerationSettings(batch_size=4)
    with small_harness():
        subject = open_subject(CheckpointSettings(hf_dir=tiny_llama / "hf"), LayoutSettings(), four)
        tasks = run_tasks(subject.language_model(TARGET), tiny_llama / "tasks")
        long = CheckpointSettings(hf_dir=tiny_llama / "hf", rope_factors=str(tiny_llama / "long.json"))
        return {"tasks": tasks, "ruler": ruler(open_subject(long, LayoutSettings()), "ruler_fwe")}


def flat(value: Any) -> Iterator[Any]:
    """Numbers and texts in their order."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield value


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tasks(
    layout: tuple[int, int, int], measured: Callable[..., dict[str, Any]], exported: dict[str, Any]
) -> None:
    found = measured(*layout)["tasks"]
    assert list(found) == list(TASKS if layout[2] == 1 else TASKS[:2])
    for task, results in found.items():
        wanted = exported["tasks"][task]
        assert [x for x in flat(results) if isinstance(x, str)] == [
            x for x in flat(wanted) if isinstance(x, str)
        ]
        numbers, expected = (
            [float(x) for x in flat(some) if not isinstance(x, str)] for some in (results, wanted)
        )
        assert numbers == pytest.approx(expected, rel=1e-4)


def test_the_tasks_tell_models_apart(exported: dict[str, Any]) -> None:
    choice, text, answer = (exported["tasks"][task] for task in TASKS)
    assert 0 < choice["metrics"]["acc,none"] < 1
    assert text["metrics"]["word_perplexity,none"] > 1
    answers = [response for (response,) in (responses[0] for responses in answer["responses"])]
    assert len(set(answers)) > len(answers) / 2
    assert not any("the" in response or "thou" in response for response in answers)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_ruler(
    layout: tuple[int, int, int], measured: Callable[..., dict[str, Any]], exported: dict[str, Any]
) -> None:
    assert measured(*layout)["ruler"] == exported["ruler"]
    assert exported["ruler"]["averaged"] == "1 of the 13 tasks"


def requests() -> list[tuple[None, list[int], list[int]]]:
    """Texts of 30 to 120 tokens, in no order; the original length is 64."""
    rnd = random.Random(0)
    texts = [[rnd.randrange(400) for _ in range(length)] for length in (120, 30, 66, 64, 65, 100, 50)]
    return [(None, text[:-5], text[-5:]) for text in texts]


def scores(model: Any) -> list[float]:
    return [nll for nll, _ in model._loglikelihood_tokens(requests(), disable_tqdm=True)]


def test_a_batch_of_both_windows(tiny_llama: Path) -> None:
    model: Any = hf.load(tiny_llama / "hf", dtype=torch.float32)
    tokenizer = load_tokenizer(tiny_llama / "hf")
    alone, together = (scores(OneWindowABatch(model, tokenizer, TARGET, size)) for size in (1, 7))
    assert together == pytest.approx(alone, rel=1e-4)
    # The harness's own class gets them wrong, or the test above could not fail.
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, max_length=TARGET, batch_size=7)
    assert scores(theirs) != pytest.approx(alone, rel=1e-2)


def test_vllm_is_asked_for(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="vllm: not installed"):
        vllm_language_model(tiny_llama / "hf", LayoutSettings(bf16=True), GenerationSettings(), 256)
