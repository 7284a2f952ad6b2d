"""A Hugging Face model as lm-evaluation-harness calls it."""

from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerFast


class OneWindowABatch(HFLM):
    """The harness's own class for transformers, with batches to be scored that are of one RoPE window.

    The harness pads such batches on the right, without a mask: a short text beside a long one would be read
    with the rescaled RoPE.

    Args:
        model: from `hf.load`.
        tokenizer: the model's.
        max_length: longest prompt with its answer, tokens; longer ones lose their beginning.
        batch_size: documents at once, whose logits are kept all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        batch_size: int,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size)
        self.factors = getattr(model.base_model.rotary_emb, "factors", None)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], *args: Any, **options: Any
    ) -> list[tuple[float, bool]]:
        original = self.factors.original_length if self.factors else self.max_length
        results: dict[int, tuple[float, bool]] = {}
        for long in (False, True):
            numbers = [
                number
                for number, (_, context, continuation) in enumerate(requests)
                if (min(len(context) + len(continuation) - 1, self.max_length) > original) == long
            ]
            scored = super()._loglikelihood_tokens([requests[n] for n in numbers], *args, **options)
            results.update(zip(numbers, scored, strict=True))
        return [results[number] for number in range(len(requests))]
