"""Small tasks of lm-evaluation-harness with local data, of each kind of request, in both windows."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import wonderwords
from lm_eval.tasks import TaskManager

from megatron_longrope2.evaluation.ruler import measure_ruler
from megatron_longrope2.evaluation.settings import RulerSettings, TextSettings
from megatron_longrope2.evaluation.subject import Subject
from tests.evaluation.tiny_llama import LONG, ORIGINAL, WORDS

TASKS = ("local_choice", "local_text", "local_answer")
# Around the original length the window depends on every token.
LENGTHS = (30, *range(ORIGINAL - 5, ORIGINAL + 4), 200)
COMMON = "dataset_path: json\ntest_split: test\ndataset_kwargs:\n  data_files:\n    test: {rows}\n"
CHOICE = (
    "task: local_choice\noutput_type: multiple_choice\n"
    'doc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
    "metric_list:\n  - metric: acc\n"
)
TEXT = (
    'task: local_text\noutput_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{long}}"\n'
    "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n"
)
ANSWER = (
    "task: local_answer\noutput_type: generate_until\n"
    'doc_to_text: "{{text}}"\ndoc_to_target: "{{choices[0]}}"\n'
    'generation_kwargs:\n  until: ["the", "thou"]\n  max_gen_toks: 8\n'
    "metric_list:\n  - metric: exact_match\n"
)


def write_tasks(folder: Path) -> Path:
    """The definitions and their data."""
    folder.mkdir(parents=True)
    rnd = random.Random(0)
    rows: list[dict[str, Any]] = [
        {
            "text": " ".join(rnd.choices(WORDS, k=length)),
            "long": " ".join(rnd.choices(WORDS, k=3 * length)),
            "choices": [" his", " them and all"],
            "label": number % 2,
        }
        for number, length in enumerate(LENGTHS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, task in enumerate((CHOICE, TEXT, ANSWER)):
        (folder / f"{number}.yaml").write_text(task + COMMON.format(rows=folder / "rows.jsonl"))
    return folder


def run_tasks(model: Any, folder: Path, tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    """Metrics, and every request's responses, by task."""
    from lm_eval.evaluator import evaluate

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluate(model, manager.load(list(tasks)), bootstrap_iters=0)
    return {
        task: {
            "metrics": {
                key: value for key, value in found["results"][task].items() if isinstance(value, float)
            },
            "responses": [sample["resps"] for sample in found["samples"][task]],
        }
        for task in tasks
    }


@contextmanager
def small_harness() -> Iterator[None]:
    """Within, the harness starts fast: without its thirteen thousand task files (RULER's are read from their
    folder), and with few of the six million words of RULER's keys."""
    init = wonderwords.RandomWord.__init__

    def few(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        for category in ("nouns", "adjectives"):
            self._categories[category] = self._categories[category][:30]

    manager = partial(TaskManager, include_defaults=False)
    with (
        mock.patch.object(wonderwords.RandomWord, "__init__", few),
        mock.patch("lm_eval.tasks.TaskManager", manager),
    ):
        yield


def ruler(subject: Subject, *tasks: str) -> dict[str, Any]:
    """RULER's record of a sample of each task, at almost the length of the window."""
    settings = RulerSettings(lengths=(LONG,), tasks=tasks, samples=1)
    return measure_ruler(subject, TextSettings(), settings).result
