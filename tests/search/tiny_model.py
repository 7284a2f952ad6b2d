"""A tiny random Llama with a tokenizer, in Hugging Face's and Megatron's format, and reference scores."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron_longrope2.data.documents import read_books
from megatron_longrope2.data.needles import NeedleSampler
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.rope import RopeFactors, make_factors
from megatron_longrope2.scoring.samples import Sample, document_samples

ORIGINAL, TARGET = 64, 256
WORDS = ["the", "and", "of", "that", "to", "in", "he", "shall", "unto", "for", "lord", "his", "them", "is"]


def write_books(folder: Path, count: int = 4, words: int = 900) -> Path:
    """Books of random words, in lines."""
    folder.mkdir(parents=True)
    rnd = random.Random(0)
    for number in range(count):
        lines = [" ".join(rnd.choices(WORDS, k=10)) for _ in range(words // 10)]
        (folder / f"book{number}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_model(folder: Path, books: Path) -> Path:
    """A Megatron checkpoint in `folder`/megatron of the Hugging Face model in `folder`/hf."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(path) for path in sorted(books.iterdir())], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "hf")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=ORIGINAL,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "hf")
    from megatron_longrope2.checkpoint.conversion import import_hf  # not needed to score
    from megatron_longrope2.checkpoint.settings import ImportSettings

    import_hf(ImportSettings(folder / "hf", folder / "megatron", original_length=ORIGINAL))
    return folder / "megatron"


def fixed_jobs(root: Path) -> list[tuple[RopeFactors, Sample]]:
    """Two needles and a document under three factors, the last with an attention factor."""
    tokenizer, books = load_tokenizer(root / "hf"), read_books(root / "books")
    sampler = NeedleSampler(tokenizer, books)
    samples = [Sample.from_needle(one) for one in sampler.samples(2, TARGET, (0.0, 0.5))]
    samples += document_samples(tokenizer, books, 1, TARGET, 0)
    geometry = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": ORIGINAL, "target_length": TARGET}
    factors = [
        make_factors("ntk", **geometry),
        make_factors("yarn", **geometry),
        make_factors("yarn", attention_factor=True, **geometry),
    ]
    return [(one, sample) for one in factors for sample in samples]


@torch.no_grad()
def reference_scores(hf: Path, jobs: list[tuple[RopeFactors, Sample]]) -> list[float]:
    """Full logits of transformers, one pair at a time, as a search without savings would do."""
    model = LlamaForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    scores = []
    for factors, sample in jobs:
        model.model.rotary_emb.inv_freq = torch.tensor(factors.inv_freq("long"), dtype=torch.float32)
        model.model.rotary_emb.attention_scaling = factors.attention_factor.long
        logits = model(sample.tokens[None]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], sample.tokens[1:], reduction="none")
        scores.append(float(losses[sample.mask[1:]].double().sum()))
    return scores
