"""What can be generated after: prompts that, with their new tokens, fit the target length."""

from collections.abc import Sequence

from megatron_longrope2.errors import InputError


def check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, target_length: int) -> None:
    """See that every prompt can be continued; nothing is ever cut.

    Raises:
        InputError: there is nothing to generate, a prompt is empty, or with the new tokens longer than the
            target length.
    """
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens: {max_new_tokens}: nothing to generate; use 1 or more")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number}: is empty; give at least one token")
        if len(prompt) + max_new_tokens > target_length:
            raise InputError(
                f"prompt {number}: {len(prompt)} tokens and {max_new_tokens} new ones are longer than the "
                f"target length of {target_length}; shorten it or use factors for a longer target"
            )
