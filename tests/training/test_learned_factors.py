"""The options of factors learned in training."""

from pathlib import Path

import pytest

from megatron_longrope2.errors import InputError
from tests.training.conftest import Parse


def _options(pools: Path, *more: str) -> tuple[object, ...]:
    return (
        *("--rope-factors", pools / "factors.json", "--pool", "long", "1", pools / "long"),
        *("--train-rope-factors", *more),
    )


def test_fused_rope_is_off_and_the_rate_has_a_default(pools: Path, parse: Parse) -> None:
    args = parse(*_options(pools))
    assert not args.apply_rope_fusion
    assert args.rope_factors_lr == 1e-3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--single-window",), "--train-rope-factors: only the long window's are learned"),
        (("--fp16",), "--train-rope-factors: their gradient knows no loss scale"),
        (("--rope-factors-lr", "0"), "--rope-factors-lr: 0 is not a positive number"),
    ],
)
def test_what_cannot_be_is_refused(pools: Path, parse: Parse, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(*_options(pools, *more))
    assert message in str(error.value)
