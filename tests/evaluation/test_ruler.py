"""RULER's samples are those of lm-evaluation-harness's own tasks; what cannot be made is refused."""

import inspect
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from lm_eval.api.model import LM
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.ruler import measure_ruler, summarize
from megatron_longrope2.evaluation.ruler_tasks import (
    BOOK_TASKS,
    NEW_TOKENS,
    QUESTIONS,
    TASKS,
    RulerTasks,
    offline_generators,
)
from megatron_longrope2.evaluation.settings import RulerSettings, TextSettings
from megatron_longrope2.evaluation.subject import Subject
from tests.evaluation.harness_tasks import small_harness
from tests.evaluation.tiny_llama import write_books, write_tokenizer

OFFLINE = tuple(task for task in TASKS if task not in QUESTIONS)
COUNT = 3
LENGTH = 3000


@pytest.fixture(scope="module", autouse=True)
def generators() -> Iterator[Any]:
    """The harness's modules, imported with few words."""
    with small_harness(), offline_generators():
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, vt_utils

        yield {"cwe": cwe_utils, "fwe": fwe_utils, "niah": niah_utils, "vt": vt_utils}


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_books(tmp_path_factory.mktemp("books") / "books")


@pytest.fixture(scope="module")
def tokenizer(
    tmp_path_factory: pytest.TempPathFactory, books: Path, generators: Any
) -> PreTrainedTokenizerBase:
    """Trained on the tasks' wordings too: RULER fits into few thousand tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    prompts = [generators[name].TEMPLATE for name in ("niah", "fwe", "cwe", "vt")]
    prompts += [generators["vt"].generate_input_output(5, 1, 4)[0]]
    write_tokenizer(folder, books, prompts, vocab_size=1000)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def make(tokenizer: Any, books: Path) -> Any:
    def tasks(
        seed: int = 0, window: int = 10 * LENGTH, books: Path | None = books, **options: Any
    ) -> RulerTasks:
        subject = Subject("somewhere", "pi", 64, window, tokenizer, mock.Mock())
        given = {"count": COUNT, "lengths": (LENGTH,), "allow_download": False, **options}
        return RulerTasks(subject, TextSettings(books=books, seed=seed), **given)

    return tasks


def theirs(generators: Any, task: str, tokenizer: Any, length: int, words: list[str]) -> list[dict[str, Any]]:
    """The documents of the harness's own task, but few."""
    few = {"num_samples": COUNT}
    if task.startswith("niah"):
        module = generators["niah"]
        samples = partial(module.generate_samples)

        def generate(haystack: Any, **options: Any) -> Any:
            return samples(haystack, **{**options, **few})

        def haystack(type_haystack: str) -> Any:
            return words if type_haystack == "essay" else real(type_haystack=type_haystack)

        real = module.get_haystack
        with (
            mock.patch.object(module, "generate_samples", generate),
            mock.patch.object(module, "get_haystack", haystack),
            mock.patch.object(module, "get_tokenizer", return_value=tokenizer),
        ):
            return list(getattr(module, task)(max_seq_lengths=[length])["test"])
    if task == "ruler_vt":
        module = generators["vt"]
        sampler = module.sys_vartrack_w_noise_random

        def track(**options: Any) -> Any:
            return sampler(**{**options, "num_samples": min(options["num_samples"], COUNT)})

        with mock.patch.object(module, "sys_vartrack_w_noise_random", track):
            return module.get_dataset(tokenizer, length)
    if task == "ruler_cwe":
        return generators["cwe"].sys_word_pair_random(max_seq_length=length, tokenizer=tokenizer, **few)
    return generators["fwe"].sys_kwext(tokenizer, length, **few)


@pytest.mark.parametrize("length", [LENGTH, 8192])
@pytest.mark.parametrize("task", OFFLINE)
def test_same_documents(task: str, length: int, make: Any, generators: Any, tokenizer: Any) -> None:
    if task in BOOK_TASKS and length < 4096:
        pytest.skip("theirs would leave most of the length empty")
    tasks = make()
    random.seed(0)
    np.random.seed(1234)
    rng = random.Random(42)
    rng.shuffle(list(generators["cwe"].WORDS))
    generators["cwe"].RNG.setstate(rng.getstate())
    words = [word for book in tasks.subject.books(tasks.texts) for word in book.text.split()]
    wanted = theirs(generators, task, tokenizer, length, words * (1 + length // len(words)))
    documents = tasks.documents(task, length)
    assert documents == wanted
    assert len(documents) == COUNT
    # A function of the seed: neither of what was made before, nor of how many.
    assert tasks.documents(task, length) == documents
    assert make(seed=1).documents(task, length) != documents


@pytest.mark.parametrize("task", OFFLINE)
def test_samples_use_the_length_and_fit_the_window(task: str, make: Any, tokenizer: Any) -> None:
    for window in (LENGTH, 10 * LENGTH):
        for document in make(window=window).documents(task, LENGTH):
            prompt = f"{document['input']}\n\n{document['gen_prefix']}"
            tokens = len(tokenizer(prompt)["input_ids"]) + NEW_TOKENS[task]
            assert 0.7 * LENGTH < tokens <= LENGTH + (0 if window == LENGTH else 150)
            assert document["max_length"] == LENGTH
            assert all(output in document["input"] for output in document["outputs"])


@pytest.mark.parametrize("task", BOOK_TASKS)
def test_short_lengths_are_filled_with_books_too(task: str, make: Any, tokenizer: Any) -> None:
    for document in make().documents(task, 600):
        assert 0.75 * 600 < len(tokenizer(document["input"])["input_ids"]) + NEW_TOKENS[task] <= 600


@pytest.mark.parametrize("task", OFFLINE)
@pytest.mark.parametrize("length", [60, 130, 190])
def test_too_short_is_refused_and_nothing_hangs(task: str, length: int, make: Any) -> None:
    with pytest.raises(InputError, match=rf"ruler: .*{length} tokens"):
        make().documents(task, length)


def test_what_needs_books_or_a_download(make: Any) -> None:
    tasks = make()
    assert tasks.choose(None) == list(OFFLINE)
    assert make(books=None).choose(None) == [task for task in OFFLINE if task not in BOOK_TASKS]
    assert make(books=None, allow_download=True).choose(None) == list(TASKS)
    for refused, message in (
        ("ruler_qa_squad", "ruler_qa_squad needs --questions, or questions that are downloaded"),
        ("ruler_qa", "'ruler_qa' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            tasks.choose([refused])
    with pytest.raises(InputError, match="niah_multivalue needs --books, or essays that are downloaded"):
        make(books=None).choose(["niah_multivalue"])


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Both files in their owners' formats, with fewer questions."""
    texts = [f"{noun} lived in the land of {noun} " * 20 for noun in ("Abram", "Isaac", "Jacob", "Laban")]
    asked = [
        {"question": "Who lived there?", "answers": [{"text": text.split()[0]}], "is_impossible": False}
        for text in texts
    ]
    squad = [{"context": text, "qas": [one]} for text, one in zip(texts, asked, strict=True)]
    hotpot = [
        {"question": "Where?", "answer": "land", "context": [[text[:5], [text]], ["Other", ["More text."]]]}
        for text in texts
    ]
    (tmp_path / "dev-v2.0.json").write_text(json.dumps({"data": [{"paragraphs": squad}]}))
    (tmp_path / "hotpot_dev_distractor_v1.json").write_text(json.dumps(hotpot))
    return tmp_path


def test_questions_from_files_make_thirteen_tasks(make: Any, questions: Path, tokenizer: Any) -> None:
    tasks = make(questions=questions)
    assert tasks.choose(None) == list(TASKS)
    for task, answers in (("ruler_qa_squad", {"Abram", "Isaac", "Jacob"}), ("ruler_qa_hotpot", {"land"})):
        documents = tasks.documents(task, LENGTH)
        assert {answer for document in documents for answer in document["outputs"]} == answers
        for document in documents:
            assert document["outputs"][0] in document["input"]
            prompt = f"{document['input']} {document['gen_prefix']}"
            assert len(tokenizer(prompt)["input_ids"]) + NEW_TOKENS[task] <= LENGTH


def test_the_question_files_are_those_that_the_harness_downloads() -> None:
    from lm_eval.tasks.ruler import qa_utils

    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    for task, read in (("ruler_qa_squad", qa_utils.read_squad), ("ruler_qa_hotpot", qa_utils.read_hotpotqa)):
        url = inspect.signature(read).parameters["url"].default
        assert url.endswith(f"/{QUESTIONS[task]}")
        assert url in page


def test_wrong_question_files_are_named(make: Any, questions: Path) -> None:
    (questions / "dev-v2.0.json").write_text("[]")
    with pytest.raises(InputError, match=r"dev-v2\.0\.json: not the questions of ruler_qa_squad"):
        make(questions=questions).choose(["ruler_qa_squad"])
    (questions / "dev-v2.0.json").unlink()
    with pytest.raises(InputError, match=r"dev-v2\.0\.json: cannot be read"):
        make(questions=questions).choose(None)
    assert make(questions=questions).choose(["ruler_vt"]) == ["ruler_vt"]


class Parrot(LM):
    """Repeats the end of its prompt, where the answers are not, or all of it, where they are."""

    def __init__(self, characters: int | None = None) -> None:
        super().__init__()
        self.characters = characters

    def loglikelihood(self, requests: Any) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests: Any) -> list[str]:
        return [request.args[0][-(self.characters or 0) :] for request in requests]


def test_scores_are_the_harness_s(make: Any, tokenizer: Any, books: Path) -> None:
    from lm_eval.tasks.ruler.common_utils import process_results

    settings = RulerSettings(lengths=(LENGTH, 4096), samples=2, tasks=("niah_multivalue", "ruler_vt"))
    for characters, average in ((None, 100.0), (60, 0.0), (2000, None)):
        model = mock.Mock(return_value=Parrot(characters))
        subject = Subject("somewhere", "pi", 64, 8192, tokenizer, model)
        measured = measure_ruler(subject, TextSettings(books=books, seed=3), settings)
        assert list(measured.result["average"]) == [str(LENGTH), "4096"]
        if average is not None:
            assert set(measured.result["average"].values()) == {average}
    tasks = make(seed=3, window=8192, count=2)
    for task in settings.tasks or ():
        for length in settings.lengths:
            documents = tasks.documents(task, length)
            answers = [f"{doc['input']} {doc['gen_prefix']}"[-2000:] for doc in documents]
            scores = [
                process_results(document, [answer])[str(length)]
                for document, answer in zip(documents, answers, strict=True)
            ]
            assert measured.result["scores"][task][str(length)] == scores
    assert measured.summary.startswith("RULER at 3000 tokens: ")
    assert measured.summary.endswith("(2 of the 13 tasks)")


def test_averages() -> None:
    found = summarize({"ruler_vt": {"64": [0.0, 0.5], "128": [1.0, 1.0]}, "ruler_cwe": {"64": [1.0, 1.0]}})
    assert found["tasks"]["ruler_vt"] == {"64": 25.0, "128": 100.0}
    assert found["average"] == {"64": 62.5, "128": 100.0}
    low, high = found["average_ci95"]["64"]
    assert 0 < low < 62.5 < high < 100
    assert found["averaged"] == "2 of the 13 tasks"
    assert summarize({task: {"64": [1.0]} for task in TASKS})["averaged"] == "all 13 tasks"
