"""Generation on a Megatron model, with a KV cache and the RoPE switch.

Up to the original length a sequence is read with the original RoPE, from then on with the rescaled one
(LongRoPE2, section 3.3). The cache of the first is of no use to the second, because the keys and values of
deeper layers depend on the angles: a sequence that crosses the original length is computed once more, whole,
and continued from there.

A prompt is read in chunks, each over the keys and values of those before it, so that the activations of 128K
tokens are never there together.

Megatron's static inference context holds the cache; the rotary embedding chooses its window by the context's
`max_sequence_length`: at most the original length for the short window, more for the long one.
"""

from collections.abc import Callable, Sequence
from itertools import batched
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.inference.communication_utils import broadcast_from_last_pipeline_stage
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper
from megatron.core.inference.utils import InferenceMode
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from megatron_longrope2.device import free_memory
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.settings import GenerationSettings
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.model.loading import LoadedModel

# Of the free memory, for a batch; the rest is for what its estimate leaves out, and for fragmentation.
MEMORY_SHARE = 0.8
# From logits float32 [rows, vocabulary] to the next tokens, int64 [rows].
Choose = Callable[[Tensor], Tensor]
# From a row's new tokens so far to whether it ends with the last of them.
Finished = Callable[[Sequence[int]], bool]


def greedy(logits: Tensor) -> Tensor:
    """The most likely tokens; a `Choose`."""
    return logits.argmax(-1)


def sampling(temperature: float, top_k: int = 0, top_p: float = 1.0) -> Choose:
    """A `Choose` that draws, from a random stream for each data-parallel group.

    Args:
        temperature: what logits are divided by, above 0.
        top_k: draw among so many most likely tokens; 0: among all.
        top_p: draw among the most likely tokens that together have this probability.
    """
    warpers = [TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)]
    if top_k:
        warpers.insert(1, TopKLogitsWarper(top_k))
    warp = LogitsProcessorList(warpers)
    stream = torch.Generator().manual_seed(mpu.get_data_parallel_rank())
    return lambda logits: torch.multinomial(warp(None, logits.cpu()).softmax(-1), 1, generator=stream)[:, 0]


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


def generate(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    choose: Choose = greedy,
    finished: Finished | None = None,
    settings: GenerationSettings = GenerationSettings(),
    description: str = "",
) -> list[list[int]]:
    """The new tokens of each prompt; every rank calls it with the same prompts and gets all results.

    Prompts of one length share a batch, so prompts of both windows can be given together. Batches are dealt
    to the data-parallel groups in turn.

    Args:
        prompts: token ids, not empty, of any lengths.
        max_new_tokens: stop after so many; with the prompt at most the target length.
        choose: picks the next tokens.
        finished: tells whether a row ends before; by default none does.
        settings: how many prompts are continued at once, at most, and in which steps they are read.
        description: of the progress bar; none is shown without it.

    Raises:
        InputError: a prompt is empty, or with the new tokens longer than the target length; or the model is
            loaded with context or sequence parallelism.
    """
    if mpu.get_context_parallel_world_size() > 1 or model.args.sequence_parallel:
        raise InputError("generation: load the model without context and sequence parallelism")
    check_prompts(prompts, max_new_tokens, model.rotaries[0].factors.target_length)
    chunk = settings.prefill_chunk
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    batches = [
        list(part)
        for length, same in by_length.items()
        for part in batched(same, settings.batch_size or _rows(model, length + max_new_tokens, chunk))
    ]
    groups, group = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
    mine: dict[int, list[int]] = {}
    show = bool(description) and torch.distributed.get_rank() == 0
    for numbers in tqdm(batches[group::groups], desc=description, unit="batch", disable=not show):
        tokens = torch.tensor([prompts[number] for number in numbers], device=torch.cuda.current_device())
        rows = _continue(model, tokens, max_new_tokens, choose, finished, chunk)
        mine.update(zip(numbers, rows, strict=True))
    everyone: list[dict[int, list[int]]] = [mine] * groups
    if groups > 1:
        torch.distributed.all_gather_object(everyone, mine, group=mpu.get_data_parallel_group())
    merged = {number: row for part in everyone for number, row in part.items()}
    return [merged[number] for number in range(len(prompts))]


def row_memory(dims: ModelDims, layers: int, split: int, length: int, chunk: int) -> float:
    """Numbers that a rank holds for a row of `length` tokens, beside the weights.

    A token takes its keys and values in every layer. In one layer at a time its keys are rotated (upstream
    keeps them unrotated), in about 4 tensors of their size, and keys and values may be repeated for every
    head of the queries. A token of the chunk that is read takes about 8 vectors of the hidden size, and the
    gated MLP's two halves and their product.

    Args:
        layers: of this pipeline stage.
        split: tensor-parallel ranks.
        chunk: tokens of a prompt that are read at once.
    """
    cached = 2 * layers * dims.key_value_size + 4 * dims.key_value_size + 2 * dims.query_size
    read = 8 * dims.hidden_size + 3 * dims.ffn_hidden_size / split
    return length * cached / split + min(chunk, length) * read


def _rows(model: LoadedModel, length: int, chunk: int) -> int:
    """Rows of so many tokens that fit into the free memory of every rank, at least 1."""
    layers, split = len(model.chunks[0].decoder.layers), mpu.get_tensor_model_parallel_world_size()
    numbers = row_memory(ModelDims.from_args(model.args), layers, split, length, chunk)
    bytes_per_row = numbers * model.chunks[0].config.params_dtype.itemsize
    rows = torch.tensor(max(1, int(MEMORY_SHARE * free_memory() / bytes_per_row)))
    rows = rows.to(torch.cuda.current_device())
    torch.distributed.all_reduce(rows, torch.distributed.ReduceOp.MIN)
    return int(rows)


@torch.no_grad()
def _continue(
    model: LoadedModel,
    tokens: Tensor,
    max_new_tokens: int,
    choose: Choose,
    finished: Finished | None,
    chunk: int,
) -> list[list[int]]:
    """The new tokens of each row, after prompts int64 [rows, length]."""
    rows, length = tokens.shape
    original, total = model.rotaries[0].factors.original_length, length + max_new_tokens
    new: list[list[int]] = [[] for _ in range(rows)]
    ended = [False] * rows

    def cached(longest: int) -> GPTInferenceWrapper:
        """The model with an empty cache for sequences that grow to so many tokens."""
        wrapper = GPTInferenceWrapper(model.chunks[0], StaticInferenceContext(rows, longest))
        wrapper.prep_model_for_inference()
        return wrapper

    wrapper, done = cached(total if length > original else min(total, original)), 0
    while not all(ended) and tokens.shape[1] < total:
        if done == original:
            wrapper, done = cached(total), 0
        logits = _logits(wrapper, tokens, done, chunk)
        done = tokens.shape[1]
        chosen: Any = None if logits is None else choose(logits[:, : model.args.vocab_size]).to(tokens.device)
        if mpu.get_pipeline_model_parallel_world_size() > 1:
            chosen = broadcast_from_last_pipeline_stage(
                [rows], torch.int64, chosen, pp_group=mpu.get_pipeline_model_parallel_group()
            )
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        for row, token in enumerate(chosen.tolist()):
            if not ended[row]:
                new[row].append(token)
                ended[row] = finished is not None and finished(new[row])
    return new


def _logits(wrapper: GPTInferenceWrapper, tokens: Tensor, done: int, chunk: int) -> Tensor | None:
    """Logits float32 [rows, padded vocabulary] after the last token, on the last pipeline stage.

    Args:
        tokens: int64 [rows, n].
        done: how many of each row the cache holds.
        chunk: how many more it is given at once.
    """
    if done:
        wrapper.inference_context.enable_decode_mode()
    pipeline = mpu.get_pipeline_model_parallel_world_size() > 1
    # Not `run_one_forward_step`: its inference tensors would stay in the rotary embedding's tables.
    forward = (
        wrapper.forward_pass_with_pipeline_parallel
        if pipeline
        else wrapper.forward_pass_without_pipeline_parallel
    )
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    with InferenceMode.active():
        for start in range(done, tokens.shape[1], chunk):
            part = slice(start, start + chunk)
            inputs = {"tokens": tokens[:, part], "position_ids": positions[:, part], "attention_mask": None}
            logits: Tensor | None = forward(inputs)  # upstream makes those of the last token only
    return None if logits is None else logits[:, -1].float()
