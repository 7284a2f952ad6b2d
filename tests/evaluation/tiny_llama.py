"""A tiny random Llama with a tokenizer and books, in Hugging Face's and in Megatron's format."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron_longrope2.checkpoint.conversion import import_hf
from megatron_longrope2.checkpoint.settings import ImportSettings
from megatron_longrope2.data.needles import key_pool
from megatron_longrope2.data.wording import SHORT
from megatron_longrope2.rope import RopeFactors, make_factors
from megatron_longrope2.rope.hf import factors_to_hf

ORIGINAL, TARGET, LONG = 64, 256, 2048
WORDS = (
    "the and of that to in he shall unto for lord his them with is be not it they thou all thy which"
).split()


def factors() -> RopeFactors:
    """Rescaled RoPE that differs clearly from the original."""
    return make_factors(
        "ntk", rope_base=10000.0, rotary_dim=16, original_length=ORIGINAL, target_length=TARGET
    )


def long_factors() -> RopeFactors:
    """For texts as long as RULER's."""
    return make_factors("pi", rope_base=10000.0, rotary_dim=16, original_length=ORIGINAL, target_length=LONG)


def write_books(folder: Path, count: int = 4, words: int = 900) -> Path:
    """Books of random words, in lines."""
    folder.mkdir(parents=True)
    rnd = random.Random(0)
    for number in range(count):
        lines = [" ".join(rnd.choices(WORDS, k=10)) for _ in range(words // 10)]
        (folder / f"book{number}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_tokenizer(folder: Path, books: Path, texts: Sequence[str] = (), vocab_size: int = 400) -> None:
    """A byte-level BPE with single digits, trained on books, needles and further texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    lines = [SHORT.opening, SHORT.needle, SHORT.question, *key_pool("all"), *texts] * 20
    tokenizer.train_from_iterator([*lines, *(path.read_text() for path in books.iterdir())], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def write_model(folder: Path) -> None:
    """Into `folder`: `hf`, a Hugging Face model with the rescaled RoPE, `megatron`, the same, and `books`."""
    books = write_books(folder / "books")
    write_tokenizer(folder / "hf", books)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **factors_to_hf(factors()),
    )
    LlamaForCausalLM(config).save_pretrained(folder / "hf")
    import_hf(ImportSettings(folder / "hf", folder / "megatron"))


def prompts() -> list[list[int]]:
    """Lengths far below 64 tokens, crossing it within 12 (two of one length), at it and above it."""
    rnd = random.Random(1)
    return [[rnd.randrange(400) for _ in range(length)] for length in (20, 58, 58, 64, 65, 100)]
