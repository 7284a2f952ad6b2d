"""Which tokens each kind of perplexity scores, and how often."""

import math
from collections.abc import Sequence

import pytest
import torch

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.perplexity import (
    Perplexity,
    octave_edges,
    position_perplexity,
    sliding_perplexity,
    text_perplexity,
)
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import TokenScores


class Recorder:
    """Every token costs a thousandth of its own id in nats; remembers the scored ids."""

    def __init__(self) -> None:
        self.scored: list[list[int]] = []
        self.contexts: list[int] = []

    def __call__(self, samples: Sequence[Sample], description: str = "") -> list[TokenScores]:  # noqa: ARG002
        results = []
        for sample in samples:
            places = sample.mask[1:].nonzero().squeeze(1) + 1
            ids = sample.tokens[places]
            self.scored.append(ids.tolist())
            self.contexts += places.tolist()
            results.append(TokenScores(ids / 1000, torch.zeros(len(ids), dtype=torch.bool)))
        return results


def text(length: int) -> Sample:
    """Token number n has id n; all but the first are scored."""
    mask = torch.ones(length, dtype=torch.bool)
    mask[0] = False
    return Sample(torch.arange(length), mask)


def test_sliding_window_scores_every_token_once_with_a_full_context() -> None:
    recorder = Recorder()
    result = sliding_perplexity(recorder, [torch.arange(300), torch.arange(99), torch.arange(100)], 100, 40)
    first, second = recorder.scored[:-1], recorder.scored[-1]
    assert [id for ids in first for id in ids] == list(range(1, 300))
    assert second == list(range(1, 100))
    later = recorder.contexts[99:-99]
    assert min(later) == 100 - 40
    assert result.tokens == (299, 99)
    assert result.nll[1] == pytest.approx(sum(range(1, 100)) / 1000)


def test_buckets_share_out_the_positions() -> None:
    buckets = position_perplexity(Recorder(), [text(300), text(120)], (1, 100, 200, 400))
    assert {edges: value.tokens for edges, value in buckets.items()} == {
        (1, 100): (99, 99),
        (100, 200): (100, 20),
        (200, 400): (100,),
    }
    assert buckets[200, 400].value == pytest.approx(math.exp(249.5 / 1000), rel=1e-5)


def test_a_bucket_beyond_all_texts_is_left_out() -> None:
    assert list(position_perplexity(Recorder(), [text(50)], (1, 100, 200))) == [(1, 100)]


def test_octaves_end_at_the_length() -> None:
    assert octave_edges(256, 2048) == [1, 64, 128, 256, 512, 1024, 2048]
    assert octave_edges(256, 1500) == [1, 64, 128, 256, 512, 1024, 1500]
    assert octave_edges(256, 256) == [1, 64, 128, 256]


def test_perplexity_weighs_tokens_and_compares_texts() -> None:
    result = text_perplexity(Recorder(), [text(3), text(5)])
    assert result.value == pytest.approx(math.exp((1 + 2 + 1 + 2 + 3 + 4) / 1000 / 6))
    worse = Perplexity(tuple(nll + 0.1 * n for nll, n in zip(result.nll, result.tokens, strict=True)), (2, 4))
    difference = worse.difference(result)
    assert difference.mean == pytest.approx(0.1)
    assert difference.ci95 == pytest.approx(0, abs=1e-6)
    assert Perplexity((1e6,), (1,)).to_dict()["perplexity"] is None


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [(100, 0, "0 tokens do not fit"), (100, 101, "101 tokens do not fit"), (301, 10, "the longest has 300")],
)
def test_refusals(window: int, stride: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sliding_perplexity(Recorder(), [torch.arange(300)], window, stride)
