"""What a grid says of scores that are known."""

import json
import math
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoTokenizer

from megatron_longrope2.data.documents import read_books
from megatron_longrope2.data.needles import NeedleSampler
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.needle_grid import (
    NeedleGrid,
    NeedleScore,
    compare_needles,
    measure_needles,
)
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import TokenScores
from tests.evaluation.tiny_llama import write_books, write_tokenizer


class Oracle:
    """Right about samples of at most `known` tokens, else only about their first; `nll` nats a token."""

    def __init__(self, known: int, nll: float = 0.5) -> None:
        self.known, self.nll = known, nll
        self.seen: list[Sample] = []

    def __call__(self, samples: Sequence[Sample], description: str = "") -> list[TokenScores]:  # noqa: ARG002
        self.seen += samples
        scores = []
        for sample in samples:
            correct = torch.zeros(sample.scored, dtype=torch.bool)
            correct[: 1 if len(sample.tokens) > self.known else None] = True
            scores.append(TokenScores(torch.full((sample.scored,), self.nll), correct))
        return scores


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> NeedleSampler:
    folder = tmp_path_factory.mktemp("needles")
    books = write_books(folder / "books")
    write_tokenizer(folder / "hf", books)
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    return NeedleSampler(tokenizer, read_books(books), keys="held_out")


def test_accuracy_and_perplexity_by_length(sampler: NeedleSampler) -> None:
    grid = measure_needles(Oracle(known=128), sampler, (128, 256), (0.0, 1.0), 3)
    assert (grid.at(128).accuracy, grid.at(256).accuracy, grid.accuracy) == (1.0, 0.0, 0.5)
    assert grid.perplexity == pytest.approx(math.exp(0.5))
    assert grid.table() == [[1.0, 1.0], [0.0, 0.0]]
    low, high = grid.to_dict()["by_length"]["128"]["accuracy_ci95"]
    assert 0.5 < low < 0.7
    assert high == 1.0


def test_depths_have_their_own_needles_and_lengths_share_them(sampler: NeedleSampler) -> None:
    oracle = Oracle(known=128)
    measure_needles(oracle, sampler, (128, 256), (0.0, 1.0), 3)
    answers = [tuple(sample.tokens[sample.mask].tolist()) for sample in oracle.seen]
    assert len(set(answers)) == 6
    assert answers[:6] == answers[6:]


def test_a_grid_survives_json(sampler: NeedleSampler) -> None:
    grid = measure_needles(Oracle(known=128), sampler, (128,), (0.5,), 2)
    assert NeedleGrid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


def test_a_comparison_is_paired(sampler: NeedleSampler) -> None:
    better, worse = (measure_needles(Oracle(128, nll), sampler, (128,), (0.0, 0.5), 4) for nll in (0.25, 1.0))
    difference = compare_needles(better, worse)
    assert (difference.mean, difference.ci95, difference.count) == (pytest.approx(-0.75), 0.0, 8)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda grid: grid.at(512), "nothing was measured at length 512"),
        (lambda grid: compare_needles(grid, grid.at(128)), "different samples"),
        (
            lambda _: NeedleGrid.from_dict({"scores": [{"length": 3}]}),
            r"not a needle grid",
        ),
    ],
)
def test_refusals(act: object, message: str) -> None:
    grid = NeedleGrid(tuple(NeedleScore(n, 0.0, 0, 1.0, 7, 7) for n in (128, 256)))
    with pytest.raises(InputError, match=message):
        act(grid)  # type: ignore[operator]


def test_an_empty_grid_is_refused(sampler: NeedleSampler) -> None:
    with pytest.raises(InputError, match="no length, depth or repetition"):
        measure_needles(Oracle(1), sampler, (), (0.0,), 3)


def test_overflow_is_infinite() -> None:
    assert NeedleGrid((NeedleScore(64, 0.0, 0, 1e6, 7, 0),)).perplexity == math.inf
