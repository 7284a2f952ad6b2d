"""What is refused before anything is computed: prompts without room, texts without tokens."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from megatron_longrope2.errors import InputError


def check_prompts(prompts: Sequence[Sequence[int]], new_tokens: int, target_length: int) -> None:
    """See that every prompt can be continued; nothing is ever cut.

    Raises:
        InputError: a prompt is empty, or with the new tokens longer than the target length.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number}: is empty; give at least one token")
        if len(prompt) + new_tokens > target_length:
            raise InputError(
                f"prompt {number}: {len(prompt)} tokens and {new_tokens} new ones are longer than the "
                f"target length of {target_length}; shorten it or use factors for a longer target"
            )


def check_encodes(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """See that a tokenizer can encode a text.

    Raises:
        InputError: the text vanishes, or more than a tenth of its tokens are unknown.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
    if not ids or unknown > len(ids) / 10:
        raise InputError(
            f"tokenizer: cannot encode the haystack ({unknown} of {len(ids)} tokens are unknown); use the "
            "model's own tokenizer, or books in a language that it knows"
        )
