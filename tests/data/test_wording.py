"""RULER's wording is what lm-evaluation-harness makes, and the paper prints."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from megatron_longrope2.data import wording as module
from megatron_longrope2.data.wording import wording
from megatron_longrope2.errors import InputError
from tests.evaluation.harness_tasks import small_harness


def test_rulers_sentences_are_those_of_the_harness() -> None:
    with small_harness(), mock.patch("nltk.data.find"):
        from lm_eval.tasks.ruler import niah_utils, prepare_niah

        drawn = {"words": "numerous-kite", "numbers": "6716097"}
        with mock.patch.object(prepare_niah, "generate_random", drawn.__getitem__):
            (theirs,) = prepare_niah.generate_samples(
                "text",
                lambda _: SimpleNamespace(input_ids=()),
                max_seq_length=128,
                num_samples=1,
                template=niah_utils.TEMPLATE,
                type_haystack="repeat",
                type_needle_k="words",
                type_needle_v="numbers",
            )
    ours, facts = wording("ruler"), {"key": "numerous-kite", "value": "6716097"}
    lines = theirs["input"].splitlines()
    assert ours.opening.splitlines() == lines[:1]
    assert ours.needle.format(**facts).strip() in lines
    # The harness puts a space before the beginning of the answer, and another before the answer.
    assert ours.question.format(**facts) == f"\n{lines[-1]} {theirs['gen_prefix']} "


def test_it_is_the_papers_appendix_c() -> None:
    ours = wording("ruler")
    assert ours.opening == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    assert ours.needle.strip() == "One of the special magic numbers for {key} is: {value}."


def test_without_a_harness_or_with_another_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module._ruler.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"--needle-wording: ruler .* pip install"):
        wording("ruler")
    (tmp_path / "tasks/ruler").mkdir(parents=True)
    (tmp_path / "tasks/ruler/niah_utils.py").write_text("OTHER = 1\n")
    monkeypatch.setattr(module, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(InputError, match=r"niah_utils\.py: has no TEMPLATE"):
        wording("ruler")
