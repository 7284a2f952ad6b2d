"""The shipped base model of the example does what the demo builds on."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_longrope2.data.documents import read_books
from megatron_longrope2.data.needles import ADJECTIVES, NOUNS, NeedleSampler
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.data.wording import SHORT

EXAMPLE = Path(__file__).parents[2] / "examples/tiny_cpu"
BASE = EXAMPLE / "base"


def test_the_tokenizer_splits_digits_and_adds_one_bos() -> None:
    tokenizer = load_tokenizer(BASE)
    ids = tokenizer("In 4821973 days.")["input_ids"]
    assert len(tokenizer) == 1024
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<s>"
    assert [t for t in tokenizer.convert_ids_to_tokens(ids) if t.isdigit()] == list("4821973")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "In 4821973 days."


def test_no_key_shares_a_word_token_with_the_sentence_around_it() -> None:
    tokenizer = load_tokenizer(BASE)
    sentence = tokenizer.tokenize(SHORT.needle.format(key="", value=""))
    words = {token for token in sentence if token.lstrip("Ġ").isalpha()}
    assert {"Ġis", "Ġfor"} <= words
    assert [key for key in ADJECTIVES + NOUNS if words & set(tokenizer.tokenize(f" {key}"))] == []
    # What the rule keeps out.
    assert words & set(tokenizer.tokenize(" island"))


def test_the_config_is_the_one_the_demo_extends() -> None:
    config = AutoConfig.from_pretrained(BASE)
    assert config.max_position_embeddings == 256
    assert config.rope_parameters["rope_type"] == "default"
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.tie_word_embeddings


@torch.no_grad()
def test_it_finds_needles_at_256_tokens_and_none_at_2048() -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE)
    sampler = NeedleSampler(
        load_tokenizer(BASE), read_books(EXAMPLE / "books/held_out"), seed=11, keys="held_out"
    )

    def accuracy(length: int, count: int) -> float:
        exact = 0
        for sample in sampler.samples(count, length, [0, 0.25, 0.5, 0.75, 1]):
            logits = model(sample.tokens[None]).logits[0, :-1]
            mask = sample.answer_mask[1:]
            exact += bool((logits[mask].argmax(-1) == sample.tokens[1:][mask]).all())
        return exact / count

    assert accuracy(256, 40) >= 0.97
    # Not a virtue, but what the demo fixes: plain RoPE must fail at the target length.
    assert accuracy(2048, 10) <= 0.2


def test_held_out_books_are_not_training_books() -> None:
    names = {
        split: {book.name for book in read_books(EXAMPLE / "books" / split)}
        for split in ("train", "held_out")
    }
    assert len(names["train"]) == 53
    assert len(names["held_out"]) == 13
    assert not names["train"] & names["held_out"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "pretrain_base.log"])
def test_the_folder_is_complete(name: str) -> None:
    assert (BASE / name).stat().st_size > 0
