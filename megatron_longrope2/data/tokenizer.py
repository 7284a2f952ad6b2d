"""Tokenizers: a model folder's own, and text to token ids with any format that checkpoints come with."""

import re
from array import array
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_longrope2.errors import InputError, one_line
from megatron_longrope2.files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# LLaMA 3's tokenizer: how it splits text before it merges bytes, and the number of its special tokens, whose
# ids follow the ranks.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPECIAL_TOKENS = 256
_LONG_WHITE_SPACE = re.compile(r".*?\s{25000}(?=\s)|.+", re.DOTALL)

Encode = Callable[[Sequence[str]], list[np.ndarray]]


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast":
    """Read the fast tokenizer of a local folder; nothing is downloaded.

    Raises:
        InputError: the folder is missing or holds no tokenizer that transformers can read.
    """
    # This import takes seconds.
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give a Hugging Face model folder with tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"{folder}: tokenizer: cannot be read; give tokenizer.json and tokenizer_config.json "
            f"({one_line(error)})"
        ) from error


def leading_bos(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The BOS that a tokenizer puts before every text; empty where it puts none."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer as preprocessing needs it.

    Text is never read as a special token: a document that spells one out gets the ordinary tokens of its
    letters, so that BOS and EOS are only where the caller puts them.

    Attributes:
        file: what it was read from.
        sha256: hash of that file, which identifies the tokenizer.
        vocab_size: one more than the largest id, special tokens included.
        bos_id: None where the tokenizer has none.
        eos_id: put at the end of every document.
        encode: texts to their token ids, int32 [tokens] each, without BOS and EOS.
    """

    file: Path
    sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    encode: Encode


def load_encoder(path: str | Path) -> TextEncoder:
    """Read a tokenizer: a folder with `tokenizer.json` or `tokenizer.model`, or such a file itself.

    A `.model` file is sentencepiece, or tiktoken ranks in LLaMA 3's format; its content tells which.

    Raises:
        InputError: there is no tokenizer, or it has no EOS token.
    """
    places = [Path(path), Path(path, "tokenizer.json"), Path(path, "tokenizer.model")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"{path}: is no tokenizer file, and holds neither tokenizer.json nor tokenizer.model"
        )
    if file.suffix == ".json":
        vocab_size, bos_id, eos_id, encode = _huggingface(file)
    elif ranks := _tiktoken_ranks(file):
        vocab_size, bos_id, eos_id, encode = _tiktoken(ranks)
    else:
        vocab_size, bos_id, eos_id, encode = _sentencepiece(file)
    if eos_id is None:
        raise InputError(f"{file}: eos_token: the tokenizer has none; name it in tokenizer_config.json")
    return TextEncoder(file, sha256(file), vocab_size, bos_id, eos_id, encode)


# Vocabulary size, BOS and EOS (None where the tokenizer has none), and how text is encoded.
_Read = tuple[int, int | None, int | None, Encode]


def _huggingface(file: Path) -> _Read:
    tokenizer = load_tokenizer(file.parent)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # as text
    backend.no_truncation()
    backend.no_padding()

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [_int32(found.ids) for found in backend.encode_batch_fast(texts, add_special_tokens=False)]

    size = max(tokenizer.get_vocab().values()) + 1
    return size, tokenizer.bos_token_id, tokenizer.eos_token_id, encode


def _sentencepiece(file: Path) -> _Read:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{file}: neither a sentencepiece model nor tiktoken ranks") from error

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [_int32(ids) for ids in processor.encode(list(texts), num_threads=1)]

    bos_id, eos_id = (None if i < 0 else i for i in (processor.bos_id(), processor.eos_id()))
    return processor.vocab_size(), bos_id, eos_id, encode


def _tiktoken_ranks(file: Path) -> dict[bytes, int] | None:
    """The ranks of a file whose lines are `base64 rank`, None if it is no such file.

    tiktoken's own reader caches by path, so that it would miss that a file has been replaced.
    """
    try:
        lines = [line.split() for line in file.read_bytes().splitlines() if line]
        ranks = {b64decode(token): int(rank) for token, rank in lines}
    except ValueError:
        return None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(f"{file}: ranks are not 0 to {len(ranks) - 1}, each once; the copy is incomplete")
    return ranks


def _tiktoken(ranks: dict[bytes, int]) -> _Read:
    from tiktoken import Encoding

    bos_id, eos_id = len(ranks), len(ranks) + 1
    special = {"<|begin_of_text|>": bos_id, "<|end_of_text|>": eos_id}
    encoding = Encoding("llama3", pat_str=_LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=special)

    def encode_one(text: str) -> np.ndarray:
        try:
            return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32)
        except ValueError:
            # The splitting rule backtracks over white space and gives up on about a million characters of it.
            return np.concatenate([encode_one(part) for part in _LONG_WHITE_SPACE.findall(text)])

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [encode_one(text) for text in texts]

    return len(ranks) + _LLAMA3_SPECIAL_TOKENS, bos_id, eos_id, encode


def _int32(ids: list[int]) -> np.ndarray:
    # array() reads a list of numbers about twice as fast as numpy.
    return np.frombuffer(array("i", ids), dtype=np.int32)
