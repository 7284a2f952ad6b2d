"""Prompts that cannot be continued are refused before anything is computed."""

import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.prompts import check_prompts


def test_a_prompt_may_fill_the_target_with_its_answer() -> None:
    check_prompts([[1] * 250, [1]], 6, 256)


@pytest.mark.parametrize(
    ("prompts", "new_tokens", "message"),
    [
        ([[1], [1] * 250], 7, "prompt 1: 250 tokens and 7 new ones are longer than the target length of 256"),
        ([[1], []], 7, "prompt 1: is empty"),
        ([[1]], 0, "--max-new-tokens: 0: nothing to generate"),
    ],
)
def test_refusals(prompts: list[list[int]], new_tokens: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_prompts(prompts, new_tokens, 256)
