"""Hugging Face folders as lm-evaluation-harness calls a model: in transformers, or in vLLM.

vLLM chooses one RoPE window for the whole engine, by its `max_model_len`: the short benchmarks there are a
run of their own with a short one. Its path was checked against the harness's source, not run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.settings import LayoutSettings


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


def vllm_language_model(folder: Path, max_length: int, batch_size: int | None, layout: LayoutSettings) -> Any:
    """The harness's own class for vLLM.

    Raises:
        InputError: vLLM is not installed.
    """
    try:
        from lm_eval.models.vllm_causallms import VLLM

        return VLLM(
            pretrained=str(folder),
            max_model_len=max_length,
            dtype="bfloat16" if layout.bf16 else "float32",
            batch_size=batch_size or "auto",
            tensor_parallel_size=layout.tensor_model_parallel_size,
        )
    except ImportError as error:
        raise InputError(
            f"vllm: not installed ({error}); pip install vllm, or use the transformers backend"
        ) from error
