"""RULER's scores of a model over tasks and lengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_longrope2.data.documents import Document
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.ruler.tasks import NEW_TOKENS, RulerSample, ruler_samples, score_answer
from megatron_longrope2.statistics import proportion_interval

Generate = Callable[[Sequence[Sequence[int]], int, str], list[list[int]]]
"""Prompts, number of new tokens and a description of the progress, to each prompt's new tokens."""


@dataclass(frozen=True)
class RulerResult:
    """Scores by task and length.

    Attributes:
        scores: task -> length -> every sample's score, 0 to 1.
    """

    scores: dict[str, dict[int, list[float]]]

    def mean(self, task: str, length: int) -> float:
        """A task's score at a length, percent."""
        values = self.scores[task][length]
        return 100 * sum(values) / len(values)

    def average(self, length: int) -> float:
        """Mean over the tasks at a length, percent."""
        means = [self.mean(task, length) for task, by_length in self.scores.items() if length in by_length]
        return sum(means) / len(means)

    def average_interval(self, length: int) -> tuple[float, float]:
        """95 % interval of the average over samples of the same tasks (Wilson's), percent."""
        values = [v for by_length in self.scores.values() for v in by_length.get(length, [])]
        low, high = proportion_interval(sum(values), len(values))
        return 100 * low, 100 * high

    @property
    def lengths(self) -> list[int]:
        """Lengths in tokens, ascending."""
        return sorted({length for by_length in self.scores.values() for length in by_length})

    def to_dict(self) -> dict[str, Any]:
        """Averages by length and all scores; JSON-ready."""
        return {
            "average": {str(length): self.average(length) for length in self.lengths},
            "tasks": {
                task: {str(length): self.mean(task, length) for length in by_length}
                for task, by_length in self.scores.items()
            },
            "scores": {
                task: {str(length): values for length, values in by_length.items()}
                for task, by_length in self.scores.items()
            },
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any], source: str = "ruler") -> "RulerResult":
        """What `to_dict` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            return cls({t: {int(n): list(v) for n, v in by.items()} for t, by in value["scores"].items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source}: no RULER scores ({error}); run the evaluation again") from error


def evaluate_ruler(
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    lengths: Sequence[int],
    count: int,
    *,
    target_length: int | None = None,
    seed: int = 0,
    books: Sequence[Document] = (),
) -> RulerResult:
    """Greedy answers to `count` samples of every task at every length, scored.

    Args:
        generate: the model.
        target_length: the model's, tokens, default the length itself: where prompt and answer would be
            longer, samples are made shorter.
        seed, books: see `ruler_samples`.

    Raises:
        InputError: as `ruler_samples`, or a prompt is longer than the model's target length.
    """
    if not tasks or not lengths or count < 1:
        raise InputError("ruler: no task, length or sample; give at least one of each")
    scores: dict[str, dict[int, list[float]]] = {}
    for task in tasks:
        for length in lengths:
            samples, prompts = _fitting(tokenizer, task, length, count, seed, books, target_length or length)
            answers = generate(prompts, NEW_TOKENS[task], f"{task} {length}")
            scores.setdefault(task, {})[length] = [
                score_answer(tokenizer.decode(answer, skip_special_tokens=True), sample.answers)
                for sample, answer in zip(samples, answers, strict=True)
            ]
    return RulerResult(scores)


def _fitting(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    length: int,
    count: int,
    seed: int,
    books: Sequence[Document],
    target_length: int,
) -> tuple[list[RulerSample], list[list[int]]]:
    """Samples of a length and their tokens, made for a shorter one where they would pass the target length.

    The public generator does not count the beginning of the answer, and for frequent words not even the
    answer.
    """
    room = length
    while True:
        samples = ruler_samples(task, tokenizer, room, count, seed, books)
        prompts = [tokenizer(sample.prompt, verbose=False)["input_ids"] for sample in samples]
        excess = max(map(len, prompts)) + NEW_TOKENS[task] - max(length, target_length)
        if excess <= 0:
            return samples, prompts
        room -= excess
