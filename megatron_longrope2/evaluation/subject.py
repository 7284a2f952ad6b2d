"""A checkpoint under evaluation, Megatron's or Hugging Face's, behind one interface."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from megatron_longrope2 import device, hf
from megatron_longrope2.data.documents import Document, draw_books, iter_documents
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.settings import CheckpointSettings, GenerationSettings, TextSettings
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.rope.hf import read_rope
from megatron_longrope2.scoring.hugging_face import HFScorer
from megatron_longrope2.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

# Target length, tokens, of a checkpoint without rescaled RoPE.
UNLIMITED = 2**40


@dataclass(frozen=True)
class Subject:
    """A checkpoint as lm-evaluation-harness measures it. In a job of several processes all of them do.

    Attributes:
        checkpoint: its folder.
        method: of its RoPE factors; "none" where it is not rescaled.
        original_length: pre-trained window, tokens.
        target_length: extended window, tokens; the original length where it is not rescaled.
        tokenizer: its own.
        language_model: what the harness calls a model, from the longest prompt with its answer, in tokens.
    """

    checkpoint: str
    method: str
    original_length: int
    target_length: int
    tokenizer: PreTrainedTokenizerFast
    language_model: Callable[[int], Any]

    def about(self) -> dict[str, Any]:
        """What records say of it."""
        return {
            key: getattr(self, key) for key in ("checkpoint", "method", "original_length", "target_length")
        }

    def beyond_window(self, lengths: Sequence[int]) -> list[int]:
        """Those of the lengths that a checkpoint without rescaled RoPE was not made for; a warning says so.

        Raises:
            InputError: a length exceeds the target length of a rescaled one.
        """
        beyond = [length for length in lengths if length > self.target_length]
        if beyond and self.method != "none":
            raise InputError(
                f"{self.checkpoint}: length: {beyond[0]} tokens are longer than the target length of "
                f"{self.target_length}; use at most that, or factors for a longer target"
            )
        if beyond and device.is_first_process():
            named = ", ".join(map(str, beyond))
            logger.warning(
                f"{self.checkpoint}: not extended (RoPE factors: none): lengths {named} are beyond its "
                f"window of {self.target_length} tokens"
            )
        return beyond

    def books(self, texts: TextSettings, length: int | None = None) -> Iterator[Document]:
        """The books that were given, one after another.

        Args:
            length: draw them for samples of so many tokens, see `draw_books`. None: all of them, whole.

        Raises:
            InputError: there are none, or the tokenizer cannot encode them.
        """
        if texts.books is None:
            raise InputError("--books: not given; give texts that the model was not trained on")
        books = draw_books(texts.books, texts.seed, length) if length else iter_documents(texts.books)
        for book in books:
            check_encodes(self.tokenizer, book.text[:2000])
            yield book


@dataclass(frozen=True)
class LoadedSubject(Subject):
    """A checkpoint whose model is here.

    Attributes:
        scorer: scores tokens.
        generate: greedy generation: prompts and a number of new tokens, to the new tokens of each prompt.
    """

    scorer: Scorer
    generate: Callable[[Sequence[Sequence[int]], int], list[list[int]]]


def open_subject(
    checkpoint: CheckpointSettings,
    layout: LayoutSettings,
    generation: GenerationSettings = GenerationSettings(),
) -> LoadedSubject:
    """Load a checkpoint, in place of the one before; under torchrun every process calls it.

    Raises:
        InputError: as `load_model` and `hf.load`, or a Hugging Face folder is to be run by Megatron.
    """
    open_ = _open_hf if checkpoint.folder == checkpoint.hf_dir else _open_megatron
    return open_(checkpoint, layout, generation)


def check_encodes(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
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


def windows(folder: Path, factors: RopeFactors | None) -> dict[str, Any]:
    """The first four fields of a `Subject`: of its factors or, without any, of a Hugging Face folder.

    Raises:
        InputError: config.json cannot be read.
    """
    factors = factors or read_rope(folder).factors
    if factors is not None and factors.method != "none":
        method, original, target = factors.method, factors.original_length, factors.target_length
    else:
        window = factors.original_length if factors else read_rope(folder).max_length
        method, original, target = "none", window, window
    return {
        "checkpoint": str(folder),
        "method": method,
        "original_length": original,
        "target_length": target,
    }


def _open_megatron(
    settings: CheckpointSettings, layout: LayoutSettings, generation: GenerationSettings
) -> LoadedSubject:
    device.install()
    from megatron_longrope2.evaluation.generation import generate
    from megatron_longrope2.model.loading import load_model, unload_model
    from megatron_longrope2.scoring.megatron import MegatronScorer

    unload_model()
    model = load_model(settings.folder, layout, rope_factors=settings.rope_factors)
    tokenizer: Any = model.tokenizer()
    if model.factors.method == "none":
        # Its stated target is arbitrary: `beyond_window` warns, and generation continues.
        model.set_factors(replace(model.factors, target_length=UNLIMITED))

    def greedy(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        end = tokenizer.eos_token_id
        return generate(model, prompts, new_tokens, finished=lambda new: new[-1] == end, settings=generation)

    def language_model(max_length: int) -> Any:
        from megatron_longrope2.evaluation.megatron_lm import MegatronLM

        return MegatronLM(model, tokenizer, max_length, generation)

    about = {**windows(settings.folder, model.factors), "tokenizer": tokenizer}
    return LoadedSubject(
        **about, language_model=language_model, scorer=MegatronScorer(model), generate=greedy
    )


def _open_hf(
    settings: CheckpointSettings, layout: LayoutSettings, generation: GenerationSettings
) -> LoadedSubject:
    folder = settings.folder
    if layout != LayoutSettings(bf16=layout.bf16):
        raise InputError(
            f"{folder}: only Megatron checkpoints take parallel sizes and --megatron; leave them out for a "
            "Hugging Face folder"
        )
    model = hf.load(folder, settings.rope_factors, dtype=torch.bfloat16 if layout.bf16 else torch.float32)
    model.to("cuda" if device.has_gpu() else "cpu").eval()
    tokenizer = load_tokenizer(folder)
    factors: RopeFactors | None = getattr(model.base_model.rotary_emb, "factors", None)

    def greedy(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        rows = []
        for prompt in prompts:
            inputs = torch.tensor([prompt], device=model.device)
            options = {"attention_mask": torch.ones_like(inputs), "pad_token_id": tokenizer.eos_token_id or 0}
            output = model.generate(inputs, max_new_tokens=new_tokens, do_sample=False, **options)
            rows.append(output[0, len(prompt) :].tolist())
        return rows

    def language_model(max_length: int) -> Any:
        from megatron_longrope2.evaluation.hf_lm import OneWindowABatch

        return OneWindowABatch(model, tokenizer, max_length, generation.batch_size or 1)

    about = {**windows(folder, factors), "tokenizer": tokenizer}
    return LoadedSubject(**about, language_model=language_model, scorer=HFScorer(model), generate=greedy)
