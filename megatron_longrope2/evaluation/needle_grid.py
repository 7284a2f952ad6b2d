"""Needle in a haystack over a grid of lengths and depths: accuracy and perplexity of the answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_longrope2.data.needles import NeedleSampler, books_for
from megatron_longrope2.data.wording import wording
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.perplexity import Perplexity
from megatron_longrope2.evaluation.records import Measured
from megatron_longrope2.evaluation.settings import NeedleSettings, TextSettings
from megatron_longrope2.evaluation.subject import LoadedSubject
from megatron_longrope2.ranks import on_main
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import Scorer
from megatron_longrope2.statistics import Estimate, proportion_interval


@dataclass(frozen=True)
class NeedleScore:
    """One needle sample's result.

    Attributes:
        length: tokens of the sample, answer included.
        depth: place of the needle, a fraction of the text.
        index: number of the sample in its sampler.
        nll: summed negative log-likelihood of the answer's tokens, nats.
        tokens: number of answer tokens.
        right: how many of them are the model's first choice given the right ones before.
    """

    length: int
    depth: float
    index: int
    nll: float
    tokens: int
    right: int

    @property
    def exact(self) -> bool:
        """Whether greedy generation gives the whole answer."""
        return self.right == self.tokens


@dataclass(frozen=True)
class NeedleGrid:
    """Results over lengths and depths."""

    scores: tuple[NeedleScore, ...]

    def at(self, length: int | None = None, depth: float | None = None) -> "NeedleGrid":
        """The part of one length and of one depth (default: all).

        Raises:
            InputError: nothing was measured there.
        """
        chosen = tuple(
            score
            for score in self.scores
            if (length is None or score.length == length) and (depth is None or score.depth == depth)
        )
        if not chosen:
            raise InputError(f"needles: nothing was measured at length {length}, depth {depth}")
        return NeedleGrid(chosen)

    @property
    def lengths(self) -> list[int]:
        """Lengths in tokens, ascending."""
        return sorted({score.length for score in self.scores})

    @property
    def depths(self) -> list[float]:
        """Depths, ascending."""
        return sorted({score.depth for score in self.scores})

    @property
    def accuracy(self) -> float:
        """Share of the samples whose whole answer is right."""
        return sum(score.exact for score in self.scores) / len(self.scores)

    @property
    def answers(self) -> Perplexity:
        """Perplexity of the answers, over samples."""
        return Perplexity(
            tuple(score.nll for score in self.scores), tuple(score.tokens for score in self.scores)
        )

    @property
    def perplexity(self) -> float:
        """Perplexity of the answer tokens (infinite when it overflows)."""
        return self.answers.value

    def table(self) -> list[list[float]]:
        """Accuracy [lengths, depths]."""
        return [[self.at(length, depth).accuracy for depth in self.depths] for length in self.lengths]

    def to_dict(self) -> dict[str, Any]:
        """Accuracy and perplexity by length with 95 % intervals, and every sample's score; JSON-ready."""
        by_length = {}
        for length in self.lengths:
            part = self.at(length)
            exact, measured = sum(score.exact for score in part.scores), part.answers.to_dict()
            by_length[str(length)] = {
                "accuracy": part.accuracy,
                "accuracy_ci95": list(proportion_interval(exact, len(part.scores))),
                "perplexity": measured["perplexity"],
                "perplexity_ci95": measured["ci95"],
                "samples": len(part.scores),
            }
        return {"by_length": by_length, "scores": [asdict(score) for score in self.scores]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "NeedleGrid":
        """What `to_dict` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            return cls(tuple(NeedleScore(**score) for score in value["scores"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"needles: not a needle grid ({error}); measure it again") from error


def measure_needles(
    scorer: Scorer,
    sampler: NeedleSampler,
    lengths: Iterable[int],
    depths: Sequence[float],
    repetitions: int,
) -> NeedleGrid:
    """Score `repetitions` needles at every length and depth.

    The samples are a function of the sampler's seed, so that two models, or two factor sets, can be compared
    sample by sample. Every depth has its own keys, values and books; a depth has the same ones at every
    length.

    Args:
        scorer: the model.
        sampler: for evaluation, of held-out books and with `keys="held_out"`.
        lengths: tokens.
        depths: fractions of the text.

    Raises:
        InputError: no length, depth or repetition, or the books do not fit a length.
    """
    places = [
        (length, depth, number * repetitions + repetition)
        for length in lengths
        for number, depth in enumerate(depths)
        for repetition in range(repetitions)
    ]
    if not places:
        raise InputError("needles: no length, depth or repetition; give at least one of each")
    samples = [Sample.from_needle(sampler.sample(index, length, depth)) for length, depth, index in places]
    scores = scorer(samples, description="needles")
    return NeedleGrid(
        tuple(
            NeedleScore(length, depth, index, float(s.nll.sum()), len(s.nll), int(s.correct.sum()))
            for (length, depth, index), s in zip(places, scores, strict=True)
        )
    )


def measure_needle(subject: LoadedSubject, texts: TextSettings, settings: NeedleSettings) -> Measured:
    """Needles with held-out keys over lengths and depths.

    Raises:
        InputError: as `Subject.books` and `measure_needles`.
    """
    beyond = subject.beyond_window(settings.lengths)
    depths = [place / max(settings.depths - 1, 1) for place in range(settings.depths)]
    books = subject.books(texts, max(settings.lengths))
    options: dict[str, Any] = {
        "lengths": settings.lengths,
        "most_books": books_for(settings.depths * settings.repetitions, max(settings.lengths)),
        "wording": wording(settings.needle_wording),
    }
    sampler = on_main(
        lambda: NeedleSampler(subject.tokenizer, books, seed=texts.seed, keys="held_out", **options)
    )
    grid = measure_needles(subject.scorer, sampler, settings.lengths, depths, settings.repetitions)
    lines = [
        f"needles at {length} tokens: {part.accuracy:.1%} right, perplexity {part.perplexity:.4g}"
        for length in grid.lengths
        for part in [grid.at(length)]
    ]
    return Measured(grid.to_dict(), beyond, "\n".join(lines))


def compare_needles(grid: NeedleGrid, baseline: NeedleGrid) -> Estimate:
    """Paired difference of negative log-likelihood per answer token, `grid` minus `baseline`: positive is
    worse.

    Raises:
        InputError: the two were not measured on the same samples.
    """
    places = [[(score.length, score.depth, score.index) for score in one.scores] for one in (grid, baseline)]
    if places[0] != places[1]:
        raise InputError("needles: the two grids are of different samples; measure both on the same ones")
    return grid.answers.difference(baseline.answers)
