"""Text to token ids, with any of the three tokenizer formats that checkpoints come with.

Text is never read as a special token: a document that spells one out gets the ordinary tokens of its letters,
so that BOS and EOS are only where the caller puts them.
"""

import base64
import binascii
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import sha256

# LLaMA 3's tokenizer: how it splits text before it merges bytes, and the number of its special tokens, whose
# ids follow the ranks.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPECIAL_TOKENS = 256
_LONG_WHITE_SPACE = re.compile(r".*?\s{25000}(?=\s)|.+", re.DOTALL)

Encode = Callable[[Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer as preprocessing needs it.

    Attributes:
        kind: "huggingface", "sentencepiece" or "tiktoken".
        path: the file that it was read from.
        sha256: hash of that file, which identifies the tokenizer.
        vocab_size: one more than the largest id, special tokens included.
        bos_id: None where the tokenizer has none.
        eos_id: put at the end of every document.
        encode: texts to their token ids, int32 [tokens] each, without BOS and EOS.
    """

    kind: str
    path: str
    sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    encode: Encode

    @property
    def identity(self) -> dict[str, Any]:
        """Everything but `encode`, JSON-ready."""
        return {name: value for name, value in vars(self).items() if name != "encode"}


def load_encoder(path: str | Path) -> TextEncoder:
    """Read a tokenizer: a folder with `tokenizer.json` or `tokenizer.model`, or such a file itself.

    A `.model` file is sentencepiece, or tiktoken ranks in LLaMA 3's format; its content tells which.

    Raises:
        InputError: there is no tokenizer, or it has no EOS token.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / n for n in ("tokenizer.json", "tokenizer.model") if (file / n).is_file()]
        if not found:
            raise InputError(f"{path}: holds neither tokenizer.json nor tokenizer.model")
        file = found[0]
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    if file.suffix == ".json":
        kind, (vocab_size, bos_id, eos_id, encode) = "huggingface", _huggingface(file)
    elif _is_tiktoken(raw):
        kind, (vocab_size, bos_id, eos_id, encode) = "tiktoken", _tiktoken(file, raw)
    else:
        kind, (vocab_size, bos_id, eos_id, encode) = "sentencepiece", _sentencepiece(file, raw)
    if eos_id is None:
        raise InputError(f"{file}: eos_token: the tokenizer has none; name it in tokenizer_config.json")
    return TextEncoder(kind, str(file), sha256(file), vocab_size, bos_id, eos_id, encode)


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


def _sentencepiece(file: Path, raw: bytes) -> _Read:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=raw)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{file}: neither a sentencepiece model nor tiktoken ranks") from error

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [_int32(ids) for ids in processor.encode(list(texts), num_threads=1)]

    bos_id, eos_id = (None if i < 0 else i for i in (processor.bos_id(), processor.eos_id()))
    return processor.vocab_size(), bos_id, eos_id, encode


def _is_tiktoken(raw: bytes) -> bool:
    """Whether the first line is `base64 rank`; a sentencepiece model is binary."""
    fields = raw[:400].split(b"\n", 1)[0].split()
    try:
        base64.b64decode(fields[0], validate=True)
        int(fields[1])
    except (IndexError, ValueError, binascii.Error):
        return False
    return len(fields) == 2


def _tiktoken(file: Path, raw: bytes) -> _Read:
    from tiktoken import Encoding

    # tiktoken's own reader caches by path, so that it would miss that a file has been replaced.
    try:
        lines = [line.split() for line in raw.splitlines() if line]
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    except ValueError as error:
        raise InputError(f"{file}: a line is not `base64 rank`: {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(f"{file}: ranks are not 0 to {len(ranks) - 1}, each once; the copy is incomplete")
    bos_id, eos_id = len(ranks), len(ranks) + 1
    encoding = Encoding(
        file.parent.name,
        pat_str=_LLAMA3_SPLIT,
        mergeable_ranks=ranks,
        special_tokens={"<|begin_of_text|>": bos_id, "<|end_of_text|>": eos_id},
    )

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
