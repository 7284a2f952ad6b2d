"""A Megatron checkpoint as lm-evaluation-harness calls a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    Collator,
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from megatron.core import mpu
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.generation import Choose, generate, greedy, sampling
from megatron_longrope2.evaluation.settings import GenerationSettings
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.scoring.megatron import MegatronScorer
from megatron_longrope2.scoring.samples import Sample

# Tokens of an answer where a task does not say, as in the harness's own models.
NEW_TOKENS = 256


class MegatronLM(TemplateLM):
    """A Megatron model under tensor, pipeline and data parallelism, and context parallelism for scoring.

    What the model reads of a text to be scored is all but its last token; the length of that decides between
    the original and the rescaled RoPE, as in transformers. Every rank of the job runs the harness with it;
    where the ranks' requests differ (a task may depend on the order of a Python set), those of the first rank
    count.

    Args:
        model: from `load_model`.
        tokenizer: the model's.
        max_length: longest prompt with its answer, tokens; longer ones lose their beginning.
        generation: how many prompts are continued at once.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        generation: GenerationSettings = GenerationSettings(),
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.generation = max_length, generation
        self.scorer = MegatronScorer(model)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a text that begins with the BOS token does not get a second one."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id]))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy generation would write it."""
        factors = self.model.rotaries[0].factors
        parts = 2 * mpu.get_context_parallel_world_size()
        # The window follows from what is read: not from the last token, nor from padding at the end.
        target = factors.target_length + parts
        short, long = (
            replace(factors, original_length=factors.original_length + more, target_length=target)
            for more in (parts, 0)
        )
        samples, windows = [], []
        for context, continuation in _first_rank([request[1:] for request in requests]):
            tokens = torch.tensor((context + continuation)[-(self.max_length + 1) :])
            padding = -len(tokens) % parts if parts > 2 else 0
            mask = torch.arange(len(tokens) + padding) >= len(tokens) - len(continuation)
            mask[len(tokens) :] = False
            samples.append(Sample(F.pad(tokens, (0, padding)), mask))
            windows.append(long if len(tokens) - 1 > factors.original_length else short)
        scores = self.scorer(samples, windows, description="lm-eval")
        self.model.set_factors(factors)
        return [(-float(score.nll.double().sum()), bool(score.correct.all())) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Instance], **_: Any) -> list[float]:
        """Log-likelihood of each whole text, in windows of `max_length` tokens."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (total, _greedy) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += total
        return totals

    def generate_until(self, requests: Sequence[Instance], **_: Any) -> list[str]:
        """Each prompt's answer, up to the first of its stop sequences.

        Raises:
            InputError: a task's answer does not fit the window, or as `generate`.
        """
        # Grouped by their options, such as the number of new tokens.
        groups = Collator(
            _first_rank([request.args for request in requests]),
            sort_fn=lambda request: request[0],
            group_by="gen_kwargs",
        )
        answers = [answer for group in groups.get_batched(n=0) for answer in self._answers(group)]
        return groups.get_original(answers)

    def _answers(self, group: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """The answers of prompts with the same options."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(group[0][1], NEW_TOKENS))
        stops = handle_stop_sequences(options["until"], self.tokenizer.decode([self.eot_token_id]))
        room = self.max_length - options["max_gen_toks"]
        if room < 1:
            raise InputError(f"--max-length: {self.max_length} tokens have no room for a task's answer")
        choose: Choose = greedy
        if options["do_sample"]:
            choose = sampling(
                options["temperature"] or 1.0, options.get("top_k", 0), options.get("top_p", 1.0)
            )
        tail = 2 + max(len(self.tok_encode(stop, add_special_tokens=False)) for stop in stops)

        def finished(new: Sequence[int]) -> bool:
            shown = self.tokenizer.decode(new[-tail:])
            return new[-1] == self.eot_token_id or any(stop in shown for stop in stops)

        rows = generate(
            self.model,
            [self.tok_encode(text)[-room:] for text, _ in group],
            options["max_gen_toks"],
            choose=choose,
            finished=finished,
            settings=self.generation,
            description="lm-eval",
        )
        decoded = [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        return [postprocess_generated_text(text, stops, None) for text in decoded]


def _first_rank(requests: list[Any]) -> list[Any]:
    """The first rank's requests."""
    box = [requests]
    torch.distributed.broadcast_object_list(box)
    return box[0]
