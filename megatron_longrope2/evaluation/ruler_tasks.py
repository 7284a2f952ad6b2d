"""RULER's samples (Hsieh et al. 2024, arXiv 2404.06654) by lm-evaluation-harness's generators, offline.

What is added to the generators:

- needles hide in the user's books instead of downloaded essays, repeated where they are too short, and books
  are cut into sentences by nltk's Punkt without a language's parameters, which would be downloaded;
- every task and length has random streams of its own, so that its samples do not depend on which others run;
- a sample that cannot be made is an error; theirs is left out, or the search for it never ends;
- theirs does not count the beginning of the answer, and for frequent words not even the answer: where that
  would exceed the model's window, samples are made for a shorter length, where theirs would lose their start.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.settings import TextSettings
from megatron_longrope2.evaluation.subject import Subject, check_encodes
from megatron_longrope2.files import read_json

# What tells the harness's eight retrieval tasks apart (`lm_eval.tasks.ruler.niah_utils`).
NIAH: dict[str, dict[str, Any]] = {
    "niah_single_1": {"type_haystack": "repeat"},
    "niah_single_2": {"type_haystack": "essay"},
    "niah_single_3": {"type_haystack": "essay", "type_needle_v": "uuids"},
    "niah_multikey_1": {"type_haystack": "essay", "num_needle_k": 4},
    "niah_multikey_2": {"type_haystack": "needle"},
    "niah_multikey_3": {"type_haystack": "needle", "type_needle_k": "uuids", "type_needle_v": "uuids"},
    "niah_multivalue": {"type_haystack": "essay", "num_needle_v": 4},
    "niah_multiquery": {"type_haystack": "essay", "num_needle_k": 4, "num_needle_q": 4},
}
# Tasks that hide their needles in books.
BOOK_TASKS = tuple(name for name, options in NIAH.items() if options["type_haystack"] == "essay")
# Tasks whose questions are downloaded, and the files that hold them.
QUESTIONS = {"ruler_qa_squad": "dev-v2.0.json", "ruler_qa_hotpot": "hotpot_dev_distractor_v1.json"}
# Tokens of an answer, by task.
NEW_TOKENS = {
    **dict.fromkeys(NIAH, 128),
    **{"ruler_vt": 30, "ruler_cwe": 120, "ruler_fwe": 50},
    **dict.fromkeys(QUESTIONS, 32),
}
TASKS = tuple(NEW_TOKENS)
# Tokens that the generator of variable tracking gives its solved example.
VT_EXAMPLE = 500
# Tokens by which its smallest prompts may differ.
VT_SPARE = 32
# Tokens from which on the generators' steps are small against the length.
COARSE = 4096


@dataclass(frozen=True)
class RulerTasks:
    """The harness's tasks with samples from here.

    Attributes:
        subject: whose tokenizer counts tokens, and whose window prompts are made for.
        texts: books that needles hide in, and the seed; 0 gives the samples that the harness makes for the
            first task and length of a run.
        count: samples of each task and length.
        lengths: tokens of prompt and answer together, as the generators count them.
        allow_download: use what the harness downloads, where there is nothing else.
        questions: folder of the files of `QUESTIONS`.
    """

    subject: Subject
    texts: TextSettings
    count: int
    lengths: Sequence[int]
    allow_download: bool
    questions: Path | None = None

    def choose(self, asked: Sequence[str] | None) -> list[str]:
        """The tasks asked for, or all that can be made.

        Raises:
            InputError: one is unknown, or needs books, questions or a download.
        """
        lacking: dict[str, str] = {}
        if self.questions is None and not self.allow_download:
            lacking |= dict.fromkeys(QUESTIONS, "--questions, or questions that are downloaded")
        if not (self.texts.books or self.allow_download):
            lacking |= dict.fromkeys(BOOK_TASKS, "--books, or essays that are downloaded")
        for task in asked or ():
            if task not in TASKS:
                raise InputError(f"ruler: task: {task!r} is unknown; use {', '.join(TASKS)}")
            if task in lacking:
                raise InputError(
                    f"ruler: {task} needs {lacking[task]}: leave it out, or let it with --allow-download"
                )
        chosen = list(asked or (task for task in TASKS if task not in lacking))
        for task in QUESTIONS.keys() & chosen if self.questions else ():
            self._read_questions(task)
        return chosen

    def load(self, manager: Any, tasks: Sequence[str]) -> list[Any]:
        """The harness's task objects, from its `TaskManager`.

        Raises:
            InputError: a sample cannot be made.
        """
        check_encodes(self.subject.tokenizer, "One of the special magic numbers for the key is: 1234567.")
        # A function, not a bound method or `partial`: the harness copies what it is given, deep.
        members = [{"task": task, "custom_dataset": self._dataset(task)} for task in tasks]
        with offline_generators():
            return list(manager.load([{"group": "ruler", "task": members}])["tasks"].values())

    def _dataset(self, task: str) -> Callable[..., dict[str, Any]]:
        """What the harness asks for a task's documents."""
        from datasets import Dataset

        return lambda **_: {
            "test": Dataset.from_list([doc for n in self.lengths for doc in self.documents(task, n)])
        }

    def documents(self, task: str, length: int) -> list[dict[str, Any]]:
        """Samples that fit into the window with the beginning of the answer and the answer.

        Returns:
            The harness's documents: `input`, `gen_prefix`, `outputs`, `max_length` (the length), ...

        Raises:
            InputError: a sample cannot be made.
        """
        room, window = length, max(length, self.subject.target_length)
        delimiter = "\n\n" if task == "ruler_cwe" else " "
        while True:
            self._check_smallest(task, room)
            self._begin_streams()
            try:
                documents = self._draw(task, room)
            except (ValueError, RuntimeError) as error:
                raise InputError(f"ruler: {task} at {length} tokens: {error}") from error
            answerable = task in QUESTIONS or all(
                doc["outputs"] and all(text in doc["input"] for text in doc["outputs"]) for doc in documents
            )
            if len(documents) < self.count or not answerable:
                raise InputError(f"ruler: {length} tokens are too few for {task}; use a longer length")
            prompts = [doc["input"] + delimiter + doc["gen_prefix"] for doc in documents]
            excess = max(map(self._tokens, prompts)) + NEW_TOKENS[task] - window
            if excess <= 0:
                return [{**doc, "max_length": length} for doc in documents]
            room -= max(excess, length // 100)

    def _check_smallest(self, task: str, length: int) -> None:
        """See that the task's smallest prompts fit: the search of three generators would never end.

        Raises:
            InputError: they do not.
        """
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, vt_utils

        # What it is, a prompt with its answer, what else takes room, the room.
        parts: list[tuple[str, str, int, int]] = []
        if task == "ruler_fwe":
            # It draws a word for every 50 tokens; the most frequent is noise, and three are asked for.
            parts = [(task, fwe_utils.TEMPLATE, 4 * 50, length)]
        elif task == "ruler_cwe":
            parts = [(task, " ".join(map(str, cwe_utils.generate_input_output(10, length))), 120, length)]
        elif task == "ruler_vt":
            shown, sample = (
                " ".join(map(str, vt_utils.generate_input_output(*size)))
                for size in ((5, 1, 4, True), (10, 1, 4))
            )
            taken = NEW_TOKENS[task] + VT_SPARE
            parts = [(f"the example of {task}", shown, taken, VT_EXAMPLE)]
            parts += [(task, sample, VT_EXAMPLE + taken, length)]
        for what, text, taken, room in parts:
            needed = self._tokens(text) + taken
            if needed > room:
                raise InputError(
                    f"ruler: {room} tokens are too few for {what}; this tokenizer needs {needed}"
                )

    def _draw(self, task: str, length: int) -> list[dict[str, Any]]:
        """The harness's samples for a length."""
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, qa_utils, vt_utils

        given = {"max_seq_length": length, "num_samples": self.count}
        tokenizer = self.subject.tokenizer
        if task in NIAH:
            return self._niah(task, given)
        if task in QUESTIONS:
            asked, texts = self._read_questions(task)
            return qa_utils.generate_samples(tokenizer, texts, asked, **given)
        if task == "ruler_fwe":
            return fwe_utils.sys_kwext(tokenizer, **given)
        if task == "ruler_cwe":
            return cwe_utils.sys_word_pair_random(tokenizer=tokenizer, **given)
        (example,) = vt_utils.sys_vartrack_w_noise_random(tokenizer, 1, VT_EXAMPLE, incremental=5)
        return vt_utils.sys_vartrack_w_noise_random(tokenizer, icl_example=example, **given)

    def _read_questions(self, task: str) -> tuple[list[dict[str, Any]], list[str]]:
        """A question-answering task's questions and documents, by the harness's reader."""
        from lm_eval.tasks.ruler import qa_utils

        read = qa_utils.read_squad if task == "ruler_qa_squad" else qa_utils.read_hotpotqa
        if self.questions is None:
            return read()
        file = self.questions / QUESTIONS[task]
        try:
            with mock.patch.object(qa_utils, "download_json", read_json):
                return read(str(file))
        except (KeyError, TypeError) as error:
            raise InputError(f"{file}: not the questions of {task} ({error!r}); download it again") from error

    def _niah(self, task: str, given: dict[str, int]) -> list[dict[str, Any]]:
        from lm_eval.tasks.ruler import niah_utils, prepare_niah

        options: dict[str, Any] = {"type_needle_k": "words", "type_needle_v": "numbers"}
        options |= {"num_needle_k": 1, "num_needle_v": 1, "template": niah_utils.TEMPLATE, **NIAH[task]}
        if task in BOOK_TASKS:
            haystack = self._haystack(given["max_seq_length"], options)
        else:
            haystack = prepare_niah.get_haystack(options["type_haystack"])
        return prepare_niah.generate_samples(haystack, self.subject.tokenizer, **options, **given)

    def _haystack(self, length: int, options: dict[str, Any]) -> list[str]:
        """Words of the books, enough for a length in tokens."""
        from lm_eval.tasks.ruler import prepare_niah

        if self.texts.books:
            # A word has at least a token, and the generators look 500 words ahead.
            words_of_books = (word for book in self.subject.books(self.texts) for word in book.text.split())
            words = list(islice(words_of_books, length + 500))
        else:
            words = prepare_niah.get_haystack("essay")
        words = words * (1 + length // len(words))
        if length >= COARSE:
            return words
        # Theirs fills a length 500 words at a time, which would leave a short one all but empty; it takes no
        # more words than there are.
        taken = NEW_TOKENS["niah_single_2"] + 16 * options["num_needle_k"] * options["num_needle_v"]
        words = words[:length]
        while words:
            text, answers, _ = prepare_niah.generate_input_output(len(words), words, **options)
            if self._tokens(text + " ".join(answers)) + taken <= length:
                break
            words = words[: int(0.95 * len(words))]
        return words

    def _begin_streams(self) -> None:
        """Seed the generators' random streams; as at the start of the harness with seed 0."""
        from lm_eval.tasks.ruler import cwe_utils

        random.seed(self.texts.seed)
        np.random.seed(1234)
        # As its import left it: the words were shuffled with it.
        stream = random.Random(42)
        stream.shuffle(list(cwe_utils.WORDS))
        cwe_utils.RNG.setstate(stream.getstate())

    def _tokens(self, text: str) -> int:
        return len(self.subject.tokenizer(text, verbose=False)["input_ids"])


@contextmanager
def offline_generators() -> Iterator[None]:
    """Within, the harness's generators download nothing that sentences are cut with, and print little."""
    from nltk.tokenize import PunktSentenceTokenizer

    with mock.patch("nltk.data.find"), redirect_stdout(StringIO()):
        from lm_eval.tasks.ruler import prepare_niah

        with mock.patch.object(prepare_niah, "sent_tokenize", PunktSentenceTokenizer().tokenize):
            yield
