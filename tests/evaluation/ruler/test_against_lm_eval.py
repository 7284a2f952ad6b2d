"""Our prompts are those of lm-evaluation-harness's own generators, where theirs run offline."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import nltk
import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_longrope2.evaluation.ruler import aggregation as common
from megatron_longrope2.evaluation.ruler import niah, ruler_samples, score_answer, tracking
from tests.evaluation.tiny_llama import write_books, write_tokenizer

pytestmark = pytest.mark.slow  # six million strings at the import of theirs
COUNT = 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("ruler")
    texts = [niah.TEMPLATE, niah.NEEDLE, niah.NOISE, tracking.QUESTION, tracking.PREFIX, tracking.TASK]
    texts += [common.COMMON_TEMPLATE, common.FREQUENT_TEMPLATE, common.FREQUENT_PREFIX]
    write_tokenizer(folder / "hf", write_books(folder / "books"), texts, vocab_size=1000)
    return AutoTokenizer.from_pretrained(folder / "hf")


@pytest.fixture(scope="module")
def theirs() -> Iterator[dict[str, Callable[..., list[dict[str, Any]]]]]:
    """Their generators by task, without their download at import and their six million strings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda *_, **__: None)
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, prepare_niah, vt_utils

        def needles(haystack: str, **options: Any) -> Callable[..., list[dict[str, Any]]]:
            return lambda tokenizer, length: prepare_niah.generate_samples(
                prepare_niah.get_haystack(type_haystack=haystack),
                max_seq_length=length,
                template=niah_utils.TEMPLATE,
                type_haystack=haystack,
                num_samples=COUNT,
                TOKENIZER=tokenizer,
                **options,
            )

        def common_words(tokenizer: Any, length: int) -> list[dict[str, Any]]:
            words = {item for name in ("noun", "adjective", "verb") for item in cwe_utils.r._categories[name]}
            cwe_utils.RNG = random.Random(42)
            cwe_utils.WORDS = sorted(words)
            cwe_utils.RNG.shuffle(cwe_utils.WORDS)
            return cwe_utils.sys_word_pair_random(COUNT, length, tokenizer)

        def variables(tokenizer: Any, length: int) -> list[dict[str, Any]]:
            options = {"tokenizer": tokenizer, "num_samples": COUNT}
            example = vt_utils.sys_vartrack_w_noise_random(
                tokenizer, num_samples=1, max_seq_length=500, incremental=5
            )[0]
            return vt_utils.sys_vartrack_w_noise_random(max_seq_length=length, icl_example=example, **options)

        yield {
            "niah_single_1": needles("repeat", type_needle_k="words", type_needle_v="numbers"),
            "niah_multikey_2": needles("needle", type_needle_k="words", type_needle_v="numbers"),
            "niah_multikey_3": needles("needle", type_needle_k="uuids", type_needle_v="uuids"),
            "ruler_vt": variables,
            "ruler_cwe": common_words,
            "ruler_fwe": lambda tokenizer, length: fwe_utils.sys_kwext(tokenizer, length, COUNT),
        }


@pytest.mark.parametrize("length", [3000, 8192])
@pytest.mark.parametrize(
    "task", ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe"]
)
def test_same_prompts_and_answers(
    task: str,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    theirs: dict[str, Callable[..., list[dict[str, Any]]]],
) -> None:
    random.seed(0)
    np.random.seed(1234)
    wanted = theirs[task](tokenizer, length)
    delimiter = "\n\n" if task == "ruler_cwe" else " "
    samples = ruler_samples(task, tokenizer, length, COUNT)
    assert len(samples) == len(wanted) == COUNT
    for sample, document in zip(samples, wanted, strict=True):
        assert sample.prompt == document["input"] + delimiter + document["gen_prefix"]
        assert list(sample.answers) == document["outputs"]


def test_same_scores() -> None:
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

    expected = ["1234567", "Blue-Eyed", "zzz"]
    for answer in ("", " 1234567", "it is blue-eyed\x00 and 1234567.\n", "zz\tz 123456 7", "ZZZ"):
        assert score_answer(answer, expected) == string_match_all(postprocess_pred([answer]), [expected])
