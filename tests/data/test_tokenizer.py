"""The three tokenizer formats agree with their own libraries and add nothing by themselves."""

import base64
from pathlib import Path

import pytest
import tiktoken as tiktoken_library
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from megatron_longrope2.data.tokenizer import load_encoder
from megatron_longrope2.errors import InputError


def test_huggingface(huggingface: Path, corpus: list[str]) -> None:
    encoder = load_encoder(huggingface)
    tokenizer = AutoTokenizer.from_pretrained(huggingface)
    assert (encoder.file.name, encoder.vocab_size) == ("tokenizer.json", len(tokenizer))
    assert (encoder.bos_id, encoder.eos_id) == (0, 1)
    for text, ids in zip(corpus, encoder.encode(corpus), strict=True):
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False)
        assert 0 not in ids  # its post-processor would have put BOS here
        assert tokenizer.decode(ids) == text


def test_sentencepiece(sentencepiece: Path, corpus: list[str]) -> None:
    encoder = load_encoder(sentencepiece)
    processor = SentencePieceProcessor(str(sentencepiece))
    assert (encoder.vocab_size, encoder.bos_id, encoder.eos_id) == (350, 1, 2)
    assert [ids.tolist() for ids in encoder.encode(corpus)] == [processor.encode(text) for text in corpus]


def test_tiktoken_ranks_in_llama3s_format(tiktoken: Path) -> None:
    encoder = load_encoder(tiktoken.parent)
    assert (encoder.bos_id, encoder.eos_id) == (266, 267)
    assert encoder.vocab_size == 266 + 256
    (ids,) = encoder.encode(["in the land 12345\n\nThe"])
    # Digits are split in threes, a word takes its space, and blank lines are one token.
    words = [b"in", b" the", b" ", b"l", b"and", b" ", b"123", b"4", b"5", b"\n\n", b"T", b"h", b"e"]
    lines = tiktoken.read_bytes().splitlines()
    tokens = [base64.b64decode(line.split()[0]) for line in lines]
    assert [tokens[i] for i in ids] == words


def test_tiktoken_splits_as_the_library_s_own_encoding_with_the_same_rule(tiktoken: Path) -> None:
    """LLaMA 3 splits text as OpenAI's cl100k does; only spelled the other way."""
    from megatron_longrope2.data.tokenizer import _LLAMA3_SPLIT

    lines = [line.split() for line in tiktoken.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    possessive = (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"""
        r"""\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
    )
    ours, theirs = (
        tiktoken_library.Encoding("x", pat_str=rule, mergeable_ranks=ranks, special_tokens={})
        for rule in (_LLAMA3_SPLIT, possessive)
    )
    for text in ("It's we'LL 1234567 (the)...\n", "été, and\tthe   land  ", "日本語 the 😀 12\r\n x"):
        assert ours.encode(text) == theirs.encode(text)


def test_tiktoken_takes_a_million_spaces(tiktoken: Path) -> None:
    (ids,) = load_encoder(tiktoken).encode(["the" + " " * 1_500_000 + "the"])
    assert (ids[0], ids[-1]) == (257, 258)
    assert ids.size == 1_500_001  # the last space is part of the word


@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece", "tiktoken"])
def test_special_tokens_in_a_document_are_text(kind: str, request: pytest.FixtureRequest) -> None:
    encoder = load_encoder(request.getfixturevalue(kind))
    (ids,) = encoder.encode(["a </s> b <s> c <|end_of_text|> d"])
    assert not {encoder.bos_id, encoder.eos_id} & set(ids.tolist())


def test_a_replaced_ranks_file_is_read_again(tiktoken: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tiktoken.read_bytes())
    first = load_encoder(path)
    path.write_bytes(b"".join(tiktoken.read_bytes().splitlines(keepends=True)[:256]))
    second = load_encoder(path)
    assert first.sha256 != second.sha256
    assert first.encode(["the"])[0].size == 1
    assert second.encode(["the"])[0].size == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x01garbage", "neither a sentencepiece model nor tiktoken ranks"),
        (b"YQ== 0\nYg== 2\n", "ranks are not 0 to 1, each once"),
        (b"YQ== 0\nYg==\n", "neither a sentencepiece model nor tiktoken ranks"),
    ],
)
def test_a_damaged_model_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_encoder(tmp_path)


def test_missing_tokenizers_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.model"):
        with pytest.raises(InputError, match=r"holds neither tokenizer\.json nor tokenizer\.model"):
            load_encoder(path)


def test_a_tokenizer_without_eos_is_refused(huggingface: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((huggingface / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match="eos_token: the tokenizer has none"):
        load_encoder(tmp_path)
