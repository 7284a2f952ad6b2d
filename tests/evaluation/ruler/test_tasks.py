"""Every task's samples fit, can be answered from their prompt, and are refused where they cannot be made."""

from collections.abc import Sequence

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_longrope2.data.documents import Document, read_books
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.ruler import (
    BOOK_TASKS,
    TASKS,
    RulerResult,
    aggregation,
    evaluate_ruler,
    niah,
    ruler_samples,
    score_answer,
    tracking,
)
from megatron_longrope2.evaluation.ruler.tasks import NEW_TOKENS
from megatron_longrope2.evaluation.ruler.words import _Pairs
from tests.evaluation.tiny_llama import write_books, write_tokenizer

LENGTH = 3000


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return read_books(write_books(tmp_path_factory.mktemp("books") / "b"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("ruler")
    texts = [niah.TEMPLATE, niah.NEEDLE, niah.NOISE, tracking.QUESTION, tracking.PREFIX, tracking.TASK]
    texts += [aggregation.COMMON_TEMPLATE, aggregation.FREQUENT_TEMPLATE, aggregation.FREQUENT_PREFIX]
    write_tokenizer(folder / "hf", write_books(folder / "books"), texts, vocab_size=1000)
    return AutoTokenizer.from_pretrained(folder / "hf")


@pytest.mark.parametrize("task", TASKS)
def test_samples_fit_and_hold_their_answers(
    task: str, tokenizer: PreTrainedTokenizerBase, books: list[Document]
) -> None:
    samples = ruler_samples(task, tokenizer, LENGTH, 3, books=books)
    assert len({sample.prompt for sample in samples}) == 3
    for sample in samples:
        tokens = len(tokenizer(sample.prompt)["input_ids"])
        beginning = len(tokenizer(f" {sample.prompt[-200:]}")["input_ids"])
        room = 0 if task == "ruler_fwe" else NEW_TOKENS[task]
        assert 0.6 * LENGTH < tokens <= LENGTH - room + beginning
        assert score_answer(sample.prompt, sample.answers) == 1.0
    assert len(samples[0].answers) == {
        "niah_multivalue": 4,
        "niah_multiquery": 4,
        "ruler_vt": 5,
        "ruler_cwe": 10,
        "ruler_fwe": 3,
    }.get(task, 1)


def test_samples_are_a_function_of_the_seed(
    tokenizer: PreTrainedTokenizerBase, books: list[Document]
) -> None:
    for task in ("niah_multikey_3", "ruler_vt"):
        first, again, other = (ruler_samples(task, tokenizer, LENGTH, 2, seed, books) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        assert ruler_samples(task, tokenizer, LENGTH, 1, 1, books) == first[:1]


def test_frequent_words_are_the_most_frequent(tokenizer: PreTrainedTokenizerBase) -> None:
    (sample,) = ruler_samples("ruler_fwe", tokenizer, LENGTH, 1)
    words = sample.prompt.split("coded words. ")[1].split("\nQuestion")[0].split()
    ranked = sorted(set(words) - {"..."}, key=words.count, reverse=True)
    assert set(ranked[:3]) == set(sample.answers)


def test_word_pairs_are_the_sorted_list() -> None:
    adjectives, nouns = ["blue", "blue-eyed", "a", "ad hoc", "x"], ["zoo", "eye", "fan", "eye"]
    pairs = _Pairs(adjectives, nouns)
    assert list(pairs) == sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})


def test_a_result_survives_its_dictionary() -> None:
    result = RulerResult({"ruler_vt": {64: [0.0, 0.5], 128: [1.0, 1.0]}, "ruler_cwe": {64: [1.0, 1.0]}})
    assert (result.mean("ruler_vt", 64), result.average(64)) == (25.0, 62.5)
    assert RulerResult.from_dict(result.to_dict()) == result
    low, high = result.average_interval(64)
    assert 0 < low < 62.5 < high < 100


def test_the_target_leaves_room_for_the_answer(
    tokenizer: PreTrainedTokenizerBase, books: list[Document]
) -> None:
    seen: list[tuple[int, int]] = []

    def generate(prompts: Sequence[Sequence[int]], new_tokens: int, _: str) -> list[list[int]]:
        seen.extend((len(prompt), new_tokens) for prompt in prompts)
        return [list(prompt) for prompt in prompts]

    tasks = ("niah_single_2", "ruler_vt", "ruler_fwe")
    result = evaluate_ruler(
        generate, tokenizer, tasks, (LENGTH,), 2, target_length=LENGTH, books=books, seed=3
    )
    assert all(prompt + new <= LENGTH for prompt, new in seen)
    # The model that repeats its prompt finds everything.
    assert result.average(LENGTH) == 100.0


@pytest.mark.parametrize("task", BOOK_TASKS)
def test_books_are_asked_for(task: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=f"{task} hides its needles in books"):
        ruler_samples(task, tokenizer, LENGTH, 1)


@pytest.mark.parametrize("task", TASKS)
def test_too_short_is_refused(task: str, tokenizer: PreTrainedTokenizerBase, books: list[Document]) -> None:
    with pytest.raises(InputError, match="tokens are too few"):
        ruler_samples(task, tokenizer, 130, 1, books=books)


def test_unknown_task_and_nothing_to_do(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="'ruler_qa' is unknown"):
        ruler_samples("ruler_qa", tokenizer, LENGTH, 1)
    with pytest.raises(InputError, match="no task, length or sample"):
        evaluate_ruler(lambda *_: [], tokenizer, (), (LENGTH,), 1)


def test_a_tokenizer_that_knows_nothing_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    blind = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1}, unk_token="<unk>"))
    blind.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=blind, unk_token="<unk>")
    with pytest.raises(InputError, match="cannot encode the haystack"):
        ruler_samples("niah_single_1", tokenizer, LENGTH, 1)
