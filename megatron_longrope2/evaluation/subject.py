"""A checkpoint under evaluation, Megatron's or Hugging Face's, behind one interface."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from megatron_longrope2 import device, hf
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.prompts import check_prompts
from megatron_longrope2.evaluation.ruler.run import Generate
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.rope.hf import read_hf_config
from megatron_longrope2.scoring.hugging_face import HFScorer
from megatron_longrope2.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

UNLIMITED = 2**40
"""Target length, tokens, of a checkpoint without rescaled RoPE."""


@dataclass(frozen=True)
class Subject:
    """What measurements need to know of a checkpoint.

    Attributes:
        source: its folder.
        method: of its RoPE factors; "none" where it is not rescaled.
        original_length: pre-trained window, tokens.
        target_length: extended window, tokens; the original length where it is not rescaled.
        tokenizer: its own.
        scorer: token scores.
        generate: greedy generation.
        writes: whether this process writes results (one of a job does).
    """

    source: str
    method: str
    original_length: int
    target_length: int
    tokenizer: PreTrainedTokenizerFast
    scorer: Scorer
    generate: Generate
    writes: bool = True

    def beyond_window(self, lengths: Sequence[int]) -> list[int]:
        """Those of the lengths that a checkpoint without rescaled RoPE was not made for; a warning says so.

        Raises:
            InputError: a rescaled one's target length is passed.
        """
        beyond = [length for length in lengths if length > self.target_length]
        if beyond and self.method != "none":
            raise InputError(
                f"{self.source}: length: {beyond[0]} tokens are longer than the target length of "
                f"{self.target_length}; use at most that, or factors for a longer target"
            )
        if beyond and self.writes:
            logger.warning(
                "%s: not extended (RoPE factors: %s): lengths %s are beyond its window of %s tokens",
                self.source,
                self.method,
                ", ".join(map(str, beyond)),
                self.target_length,
            )
        return beyond


def open_megatron(
    load_dir: str | Path,
    *,
    rope_factors: str | Path | None = None,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    context_parallel_size: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Subject:
    """A Megatron checkpoint, in place of an earlier one; under torchrun every process calls it.

    Raises:
        InputError: as `load_model`.
    """
    device.install()
    from megatron_longrope2.evaluation.generation import generate
    from megatron_longrope2.model.loading import load_model, unload_model
    from megatron_longrope2.scoring.megatron import MegatronScorer

    unload_model()
    model = load_model(
        load_dir,
        rope_factors=rope_factors,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        context_parallel_size=context_parallel_size,
        params_dtype=dtype,
    )
    tokenizer: Any = model.tokenizer()

    def greedy(prompts: Sequence[Sequence[int]], new_tokens: int, description: str) -> list[list[int]]:
        stop = tokenizer.eos_token_id
        rows = generate(model, prompts, new_tokens, stop_token=stop, description=description)
        return [row.tokens for row in rows]

    factors = model.factors
    rescaled = factors.method != "none"
    if not rescaled:
        # Its stated target is arbitrary: `beyond_window` warns, and generation goes on.
        model.set_factors(replace(factors, target_length=UNLIMITED))
    return Subject(
        source=str(load_dir),
        method=factors.method,
        original_length=factors.original_length,
        target_length=factors.target_length if rescaled else factors.original_length,
        tokenizer=tokenizer,
        scorer=MegatronScorer(model),
        generate=greedy,
        writes=torch.distributed.get_rank() == 0,
    )


def open_hf(
    folder: str | Path, *, rope_factors: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> Subject:
    """A Hugging Face model folder, on the GPU if there is one; with our RoPE switch where it is rescaled.

    Raises:
        InputError: as `hf.load`.
    """
    where = "cuda" if device.has_gpu() else "cpu"
    model: PreTrainedModel = hf.load(folder, rope_factors, dtype=dtype).to(where).eval()
    tokenizer = load_tokenizer(folder)
    factors: RopeFactors | None = getattr(model.base_model.rotary_emb, "factors", None)
    window = int(read_hf_config(folder)["max_position_embeddings"])

    @torch.no_grad()
    def greedy(prompts: Sequence[Sequence[int]], new_tokens: int, description: str) -> list[list[int]]:
        check_prompts(prompts, new_tokens, factors.target_length if factors else UNLIMITED)
        rows = []
        for prompt in tqdm(prompts, desc=description, unit="prompt", disable=not description):
            inputs = torch.tensor([prompt], device=where)
            output = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id or 0,
            )
            rows.append(output[0, len(prompt) :].tolist())
        return rows

    return Subject(
        source=str(folder),
        method=factors.method if factors else "none",
        original_length=factors.original_length if factors else window,
        target_length=factors.target_length if factors else window,
        tokenizer=tokenizer,
        scorer=HFScorer(model),
        generate=greedy,
    )
