"""Needle samples: exact lengths, the answer's tokens, depths, seeds and refusals."""

import re
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from megatron_longrope2.data.documents import Document
from megatron_longrope2.data.needles import NeedleSample, NeedleSampler, books_for, key_pool
from megatron_longrope2.data.wording import wording
from megatron_longrope2.errors import InputError

VERSES = [
    "In the beginning was a quiet road, and it led over the hill.",
    "Nobody knew who had built it; nobody asked.",
    "The café at its end had déjà vu on the menu.",
    "And so they went, day after day.",
]
NAMES = ["Ann", "Ben", "Cat", "Dot", "Eve"]


def make_book(name: str, lines: int = 200) -> Document:
    return Document(name, "".join(f"{name} went on. {VERSES[i % len(VERSES)]}\n" for i in range(lines)))


BOOKS = [make_book(name) for name in NAMES]


def byte_level(digits: pre_tokenizers.PreTokenizer | None, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as GPT-2's and LLaMA 3's; `digits` splits numbers before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*([digits] if digits else []), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    numbers = [f" {number}" for number in range(1000000, 9000000, 1777)]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([book.text for book in BOOKS] + numbers, trainer)
    return finish(tokenizer, adds_bos)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As LLaMA 2's: a metaspace before every text, and bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += list("abcdefghijklmnopqrstuvwxyzABCDEINTW0123456789.,:;?-")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finish(tokenizer, adds_bos=True)


def finish(tokenizer: Tokenizer, adds_bos: bool) -> PreTrainedTokenizerFast:
    bos = tokenizer.token_to_id("<s>")
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bos)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "single digits": byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "three digits": byte_level(pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated")),
    "digits merged with their space": byte_level(None),
    "sentencepiece": sentencepiece_like(),
    "no bos added": byte_level(None, adds_bos=False),
}
TOKENIZER = TOKENIZERS["single digits"]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


@pytest.fixture(scope="module")
def sampler() -> NeedleSampler:
    return NeedleSampler(TOKENIZER, BOOKS, seed=3)


def text_of(sample: NeedleSample, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> str:
    return tokenizer.decode(sample.tokens, skip_special_tokens=True)


def body_of(sample: NeedleSample) -> tuple[str, str]:
    """The book text before and after the only needle."""
    line = f"\nThe magic number for {sample.key} is: {sample.value}.\n"
    before, after = text_of(sample).split(line)
    return before.removeprefix("A magic number is hidden in this text.\n"), after.split("\nWhat is the")[0]


SAMPLERS = {name: NeedleSampler(tokenizer, BOOKS, seed=1) for name, tokenizer in TOKENIZERS.items()}


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(TOKENIZERS)),
    index=st.integers(0, 10**6),
    length=st.integers(300, 1500),
    depth=st.floats(0, 1),
)
def test_exactly_t_tokens_that_end_with_the_whole_answer(
    name: str, index: int, length: int, depth: float
) -> None:
    sample = SAMPLERS[name].sample(index, length, depth)
    assert sample.tokens.shape == sample.answer_mask.shape == (length,)
    assert (sample.tokens.dtype, sample.answer_mask.dtype) == (torch.int64, torch.bool)
    answers, value = int(sample.answer_mask.sum()), sample.value
    assert re.fullmatch(r"[1-9]\d{6}", value)
    assert sample.answer_mask[-answers:].all()
    # The value, wherever the tokenizer cut it, and nothing else but a space that is glued to it.
    assert TOKENIZERS[name].decode(sample.tokens[-answers:]).strip() == value
    assert value not in TOKENIZERS[name].decode(sample.tokens[-answers - 1 : -answers])
    assert text_of(sample, TOKENIZERS[name]).count(value) == 2


def test_the_tokenizers_do_cut_numbers_differently() -> None:
    lengths = {name: int(SAMPLERS[name].sample(0, 300, 0.5).answer_mask.sum()) for name in TOKENIZERS}
    assert lengths["single digits"] == lengths["sentencepiece"] == 7
    assert 3 <= lengths["three digits"] < 7
    assert lengths["digits merged with their space"] < 7


def test_one_bos_where_the_tokenizer_adds_one_and_none_otherwise() -> None:
    for name, tokenizer in TOKENIZERS.items():
        tokens = SAMPLERS[name].sample(4, 300, 0.5).tokens
        places = (tokens == tokenizer.bos_token_id).nonzero().flatten().tolist()
        assert places == ([] if name == "no bos added" else [0])


@pytest.mark.parametrize("name", ["short", "ruler"])
def test_the_wording_frames_the_text_and_its_answer_alone_is_scored(name: str) -> None:
    sentences = wording(name)
    sample = NeedleSampler(TOKENIZER, BOOKS, seed=3, wording=sentences).sample(0, 800, 0.0)
    needle = sentences.needle.format(key=sample.key, value=sample.value)
    question = sentences.question.format(key=sample.key)
    text = text_of(sample)
    assert text.startswith(sentences.opening + needle)
    assert text.endswith(question + sample.value)
    assert TOKENIZER.decode(sample.tokens[sample.answer_mask]).strip() == sample.value
    assert sample.key.count(sentences.joint) == 1


def test_special_tokens_spelled_in_a_book_stay_text() -> None:
    book = Document("html", "a <s> b </s> c\n" * 100)
    sample = NeedleSampler(TOKENIZER, [book]).sample(0, 300, 0.5)
    assert sample.tokens[0] == TOKENIZER.bos_token_id
    special = torch.tensor([TOKENIZER.bos_token_id, TOKENIZER.eos_token_id])
    assert not torch.isin(sample.tokens[1:], special).any()


@settings(deadline=None, max_examples=40)
@given(index=st.integers(0, 1000), length=st.integers(200, 800), depth=st.floats(0, 1))
def test_without_its_needle_the_body_is_the_book_cut_between_words(
    index: int, length: int, depth: float
) -> None:
    sample = SAMPLERS["single digits"].sample(index, length, depth)
    before, after = body_of(sample)
    text = next(book.text for book in BOOKS if book.name == sample.book)
    # The last character may be cut into bytes by the end of the body.
    start = text.find((before + after).rstrip("\ufffd"))
    assert start == 0 or text[start - 1] == "\n"
    if before and after:
        assert before[-1].isspace() or after[0].isspace()


def test_depth_is_a_fraction_of_the_body(sampler: NeedleSampler) -> None:
    parts = {depth: body_of(sampler.sample(0, 1000, depth)) for depth in (0, 0.25, 0.5, 0.75, 1)}
    assert parts[0][0] == ""
    assert parts[1][1] == ""
    for depth, (before, after) in parts.items():
        assert len(before) / len(before + after) == pytest.approx(depth, abs=0.02)


def test_a_sample_depends_on_seed_index_length_and_depth_only(sampler: NeedleSampler) -> None:
    sample = sampler.sample(7, 400, 0.3)
    sampler.sample(8, 900, 0.9)
    again = NeedleSampler(TOKENIZER, BOOKS, seed=3).sample(7, 400, 0.3)
    assert torch.equal(sample.tokens, again.tokens)
    assert (sample.key, sample.value, sample.book) == (again.key, again.value, again.book)
    for other in (
        sampler.sample(8, 400, 0.3),
        NeedleSampler(TOKENIZER, BOOKS, seed=4).sample(7, 400, 0.3),
    ):
        assert other.value != sample.value


def test_samples_of_one_index_are_paired_over_depths(sampler: NeedleSampler) -> None:
    drawn = [sampler.sample(5, 400, depth) for depth in (0, 0.4, 1)]
    assert len({(sample.key, sample.value, sample.book) for sample in drawn}) == 1
    assert len({body_of(sample)[0] + body_of(sample)[1] for sample in drawn}) == 1


def test_ten_samples_are_not_ten_depths_of_one_book(sampler: NeedleSampler) -> None:
    drawn = list(sampler.samples(10, 400, [k / 9 for k in range(10)]))
    assert sorted(sample.book for sample in drawn) == sorted(2 * NAMES)
    for k, sample in enumerate(drawn):
        before, after = body_of(sample)
        assert len(before) / len(before + after) == pytest.approx(k / 9, abs=0.05)
    assert len({sample.value for sample in drawn}) == 10


def test_books_that_are_too_short_are_passed_over() -> None:
    sampler = NeedleSampler(TOKENIZER, [make_book("Tiny", 1), *BOOKS])
    assert {sample.book for sample in sampler.samples(12, 500, [0.5])} == set(NAMES)


def test_reading_stops_when_enough_books_are_long_enough() -> None:
    def books() -> Iterator[Document]:
        # They are read in fours.
        yield from [BOOKS[0], make_book("Tiny", 1), make_book("Small", 12), *BOOKS[1:], BOOKS[0]]
        raise AssertionError("more books were read than are needed")

    options = {"lengths": (500, 900), "most_books": 4}
    some = NeedleSampler(TOKENIZER, books(), seed=3, **options)  # type: ignore[arg-type]
    drawn = list(some.samples(4, 900, [0.5]))
    assert [sample.book for sample in drawn] == [book.name for book in BOOKS[:4]]
    everything = NeedleSampler(TOKENIZER, [make_book("Tiny", 1), *BOOKS], seed=3)
    for sample, other in zip(drawn, everything.samples(4, 900, [0.5]), strict=True):
        assert torch.equal(sample.tokens, other.tokens)


def test_samples_go_round_no_more_books_than_take_seconds() -> None:
    assert books_for(10, 131_072) == 10
    assert books_for(100, 131_072) == 16
    assert books_for(100, 2048) == 64
    assert books_for(100, 1 << 20) == 10


def test_a_fixed_fifth_of_the_keys_is_held_out() -> None:
    held_out, train = key_pool("held_out"), key_pool("train")
    assert len(held_out) == 320
    assert not set(held_out) & set(train)
    assert set(held_out) | set(train) == set(key_pool("all"))
    # The shipped base was trained on the others: this set may never change.
    assert held_out[:3] == ["tall cloud", "bold path", "clear gate"]
    for split in ("train", "held_out"):
        drawn = NeedleSampler(TOKENIZER, BOOKS, keys=split).samples(50, 300, [0.5])
        assert {sample.key for sample in drawn} <= set(key_pool(split))


def test_text_without_spaces_takes_a_needle_too() -> None:
    sample = NeedleSampler(TOKENIZER, [Document("dense", "abcdefg" * 400)]).sample(0, 500, 0.5)
    before, after = body_of(sample)
    assert len(sample.tokens) == 500
    assert len(before) == pytest.approx(len(after), rel=0.1)


def test_refused_samples(sampler: NeedleSampler) -> None:
    with pytest.raises(InputError, match=r"depth: 1\.5 is not a fraction"):
        sampler.sample(0, 400, 1.5)
    with pytest.raises(InputError, match=r"length: 40 tokens leave no room for text; .* take \d+"):
        sampler.sample(0, 40, 0.5)
    with pytest.raises(InputError, match=r"books: the longest has \d+ tokens, \d+ are needed"):
        sampler.sample(0, 100_000, 0.5)
