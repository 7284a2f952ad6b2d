"""The table of Megatron's efficiency options in docs/training.md: each was tried in the way that it says."""

import re
from pathlib import Path

import pytest

from megatron_longrope2.errors import InputError
from tests.big_machine import LAYOUT_WORDS, big_machine, checkpoint, config_of, training
from tests.processes import longrope2
from tests.training.conftest import OPTIONS, Parse

__all__ = ["big_machine", "checkpoint"]

TABLE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
ROWS = re.findall(r"^\| `(--[^`]+)` \| (trained|built|not shown)[^|]*\|$", TABLE, re.MULTILINE)


def rows(shown: str) -> list[str]:
    return [words for words, how in ROWS if how == shown]


def losses(pools: Path, words: str) -> list[float]:
    """Losses of three steps of two processes."""
    data = [word for pool in ("short", "long") for word in ("--pool", pool, 1, pools / pool)]
    factors = ("--rope-factors", pools / "factors.json", "--log-interval", 1)
    done = longrope2("train", *OPTIONS, *factors, *data, "--train-iters", 3, *words.split(), ranks=2)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return [float(value) for value in re.findall(r" lm loss: ([0-9.E+-]+)", done.stdout)]


@pytest.mark.slow
def test_trained_as_without_it(pools: Path) -> None:
    expected = losses(pools, "")
    assert len(expected) == 3
    assert len(rows("trained")) > 3
    for words in rows("trained"):
        tolerance = 1e-3 if "bf16" in words else 1e-4
        assert losses(pools, words) == pytest.approx(expected, rel=tolerance), words


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize("words", rows("built"))
def test_built(words: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(lambda: training(checkpoint, [*LAYOUT_WORDS, *words.split()], monkeypatch))
    assert config.transformer.transformer_impl == "transformer_engine"
    assert bool(config.transformer.fp8) == ("--fp8-format" in words)


@pytest.mark.parametrize("words", ["--fp8-format hybrid", "--fp4-format e2m1"])
def test_torchs_layers_refuse_what_they_would_ignore(parse: Parse, words: str) -> None:
    with pytest.raises(InputError, match="torch's layers would ignore it; leave it out"):
        parse("--bf16", *words.split())
