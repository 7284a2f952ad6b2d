"""Generation on a Megatron model, with a KV cache and the RoPE switch.

Up to the original length a sequence is seen with the original RoPE, from then on with the rescaled one. The
cache of the first is of no use to the second (deeper layers' keys and values depend on the angles), so a
sequence that crosses the original length is computed once more, whole, and goes on from there (METHOD
section 5).

Megatron's static inference context holds the cache; the rotary embedding chooses its window by the context's
`max_sequence_length`: at most the original length for the short window, more for the long one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import batched

import torch
from megatron.core import mpu
from megatron.core.inference.communication_utils import broadcast_from_last_pipeline_stage
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper
from megatron.core.inference.utils import InferenceMode
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.prompts import check_prompts
from megatron_longrope2.model.loading import LoadedModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 for the most likely token (greedy), else what logits are divided by.
        top_k: draw among so many most likely tokens; 0: among all.
        top_p: draw among the most likely tokens that together have this probability.
        seed: each prompt has a random stream of its own, from the seed and the prompt's number.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"sampling: temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: "
                "use at least 0, at least 0, and above 0 up to 1"
            )


@dataclass(eq=False)
class Generation:
    """What was generated for one prompt.

    Attributes:
        prompt: its tokens.
        tokens: the new tokens; a stop token is the last one if it came.
        logits: float32 [new tokens, vocabulary], where they were asked for; on the last pipeline stage only.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logits: Tensor | None = None


def generate(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sampling: Sampling = Sampling(),
    stop_token: int | None = None,
    batch_size: int = 8,
    return_logits: bool = False,
    description: str = "",
) -> list[Generation]:
    """Generate after each prompt; every rank calls it with the same prompts and gets all results.

    Prompts of one length share a batch, so prompts of both windows can be given together. Batches are dealt
    to the data-parallel groups in turn.

    Args:
        prompts: token ids, not empty, of any lengths.
        max_new_tokens: stop after so many; with the prompt at most the target length.
        stop_token: stop after it, usually the tokenizer's `eos_token_id`.
        batch_size: prompts that are computed at once, at most.
        return_logits: keep the logits each token was chosen from.
        description: of the progress bar; none is shown without it.

    Raises:
        InputError: a prompt is empty, or with the new tokens longer than the target length; or the model is
            loaded with context or sequence parallelism.
    """
    if mpu.get_context_parallel_world_size() > 1 or model.args.sequence_parallel:
        raise InputError("generation: load the model without context and sequence parallelism")
    check_prompts(prompts, max_new_tokens, model.rotaries[0].factors.target_length)
    generator = _Generator(model, max_new_tokens, sampling, stop_token, return_logits)
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    batches = [list(part) for same in by_length.values() for part in batched(same, batch_size)]
    groups, group = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
    mine: dict[int, Generation] = {}
    show = bool(description) and torch.distributed.get_rank() == 0
    for numbers in tqdm(batches[group::groups], desc=description, unit="batch", disable=not show):
        rows = generator([list(prompts[number]) for number in numbers], numbers)
        mine.update(zip(numbers, rows, strict=True))
    everyone: list[dict[int, Generation]] = [{} for _ in range(groups)]
    if groups > 1:
        torch.distributed.all_gather_object(everyone, mine, group=mpu.get_data_parallel_group())
    else:
        everyone = [mine]
    merged = {number: row for part in everyone for number, row in part.items()}
    return [merged[number] for number in range(len(prompts))]


class _Generator:
    """Generates for batches of prompts of one length."""

    def __init__(
        self,
        model: LoadedModel,
        max_new_tokens: int,
        sampling: Sampling,
        stop_token: int | None,
        return_logits: bool,
    ) -> None:
        self.model = model.chunks[0]
        self.original_length = model.rotaries[0].factors.original_length
        self.vocab_size = int(model.args.vocab_size)
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.stop_token = stop_token
        self.return_logits = return_logits

    @torch.no_grad()
    def __call__(self, prompts: list[list[int]], numbers: Sequence[int]) -> list[Generation]:
        """Prompts of one length; `numbers` are theirs in the whole job."""
        device = torch.device(torch.cuda.current_device())
        streams = [torch.Generator().manual_seed(hash((self.sampling.seed, number))) for number in numbers]
        tokens = torch.tensor(prompts, device=device)
        rows, length = tokens.shape
        stopped = torch.zeros(rows, dtype=torch.bool, device=device)
        counts = torch.zeros(rows, dtype=torch.int64, device=device)
        kept: list[Tensor] = []
        total = length + self.max_new_tokens
        wrapper, done = self._wrapper(rows, total, long=length > self.original_length), 0
        for _ in range(self.max_new_tokens):
            if done == self.original_length:
                wrapper, done = self._wrapper(rows, total, long=True), 0
            logits = self._step(wrapper, tokens, done)
            done = tokens.shape[1]
            chosen = self._choose(logits, streams, rows, device)
            if self.return_logits and logits is not None:
                kept.append(logits.cpu())
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
            counts += ~stopped
            if self.stop_token is not None:
                stopped |= chosen == self.stop_token
                if bool(stopped.all()):
                    break
        return self._results(tokens, counts, prompts, kept)

    def _wrapper(self, rows: int, total: int, long: bool) -> GPTInferenceWrapper:
        """Model and an empty cache for a window's part of sequences that grow to `total` tokens."""
        longest = total if long else min(total, self.original_length)
        wrapper = GPTInferenceWrapper(self.model, StaticInferenceContext(rows, longest))
        wrapper.prep_model_for_inference()
        return wrapper

    def _step(self, wrapper: GPTInferenceWrapper, tokens: Tensor, done: int) -> Tensor | None:
        """Logits float32 [rows, vocabulary] after the last token, on the last pipeline stage."""
        if done:
            wrapper.inference_context.enable_decode_mode()
        positions = torch.arange(done, tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        inputs = {"tokens": tokens[:, done:], "position_ids": positions, "attention_mask": None}
        # Not `run_one_forward_step`: its inference tensors would stay in the rotary embedding's tables.
        with InferenceMode.active():
            if mpu.get_pipeline_model_parallel_world_size() == 1:
                logits = wrapper.forward_pass_without_pipeline_parallel(inputs)
            else:
                logits = wrapper.forward_pass_with_pipeline_parallel(inputs)
        return None if logits is None else logits[:, -1, : self.vocab_size].float()

    def _choose(
        self, logits: Tensor | None, streams: Sequence[torch.Generator], rows: int, device: torch.device
    ) -> Tensor:
        """The next token of each row, int64 [rows], the same on every rank."""
        chosen = None if logits is None else self._draw(logits.cpu(), streams).to(device)
        if mpu.get_pipeline_model_parallel_world_size() == 1:
            assert chosen is not None
            return chosen
        return broadcast_from_last_pipeline_stage(
            [rows], torch.int64, chosen, pp_group=mpu.get_pipeline_model_parallel_group()
        )

    def _draw(self, logits: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
        sampling = self.sampling
        if sampling.temperature == 0:
            return logits.argmax(-1)
        ordered, places = (logits / sampling.temperature).sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        if sampling.top_k:
            probabilities[:, sampling.top_k :] = 0.0
        drawn = [torch.multinomial(p, 1, generator=s) for p, s in zip(probabilities, streams, strict=True)]
        return places.gather(1, torch.stack(drawn))[:, 0]

    def _results(
        self, tokens: Tensor, counts: Tensor, prompts: Sequence[list[int]], kept: Sequence[Tensor]
    ) -> list[Generation]:
        new = tokens[:, len(prompts[0]) :].tolist()
        logits = torch.stack(list(kept), dim=1) if kept else None
        return [
            Generation(prompt, new[row][:count], None if logits is None else logits[row, :count])
            for row, (prompt, count) in enumerate(zip(prompts, counts.tolist(), strict=True))
        ]
