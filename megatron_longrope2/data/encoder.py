"""Text to token ids with any of the three tokenizer formats that checkpoints come with.

Text is never read as a special token: a document that spells one out gets the ordinary tokens of its letters,
so BOS and EOS are where the caller puts them and nowhere else.
"""

import base64
import binascii
import hashlib
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError

# LLaMA 3's tokenizer: how it splits text before merging bytes, and its special tokens' place after the ranks.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPECIAL_TOKENS = 256
_LONG_WHITE_SPACE = re.compile(r".*?\s{25000}(?=\s)|.+", re.DOTALL)


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer as data preparation needs it.

    Attributes:
        kind: "huggingface", "sentencepiece" or "tiktoken".
        path: the file that it was read from.
        sha256: of that file; which tokenizer it is.
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
    encode: Callable[[Sequence[str]], list[np.ndarray]]


def load_encoder(path: str | Path) -> TextEncoder:
    """Read a tokenizer: a folder with `tokenizer.json` or `tokenizer.model`, or such a file itself.

    A `.model` file is sentencepiece, or tiktoken ranks in LLaMA 3's format; its content tells which.

    Raises:
        InputError: nothing there, not a tokenizer, or one without an EOS token.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        file = next((path / n for n in ("tokenizer.json", "tokenizer.model") if (path / n).is_file()), path)
        if file is path:
            raise InputError(f"{path}: holds neither tokenizer.json nor tokenizer.model")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    if file.suffix == ".json":
        encoder = _huggingface(file, raw)
    elif _is_tiktoken(raw):
        encoder = _tiktoken(file, raw)
    else:
        encoder = _sentencepiece(file, raw)
    if encoder.eos_id is None or encoder.eos_id < 0:
        raise InputError(f"{file}: eos_token: the tokenizer has none; name it in tokenizer_config.json")
    return encoder


def _huggingface(file: Path, raw: bytes) -> TextEncoder:
    tokenizer = load_tokenizer(file.parent)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # that is: as text
    backend.no_truncation()
    backend.no_padding()

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [_int32(found.ids) for found in backend.encode_batch_fast(texts, add_special_tokens=False)]

    size = max(tokenizer.get_vocab().values()) + 1
    return TextEncoder(
        "huggingface", str(file), _sha256(raw), size, tokenizer.bos_token_id, tokenizer.eos_token_id, encode
    )


def _sentencepiece(file: Path, raw: bytes) -> TextEncoder:
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=raw)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{file}: neither a sentencepiece model nor tiktoken ranks") from error

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [_int32(ids) for ids in processor.encode(list(texts), num_threads=1)]

    bos_id = processor.bos_id()
    return TextEncoder(
        "sentencepiece",
        str(file),
        _sha256(raw),
        processor.vocab_size(),
        None if bos_id < 0 else bos_id,
        processor.eos_id(),
        encode,
    )


def _is_tiktoken(raw: bytes) -> bool:
    """Whether the first line is `base64 rank`; a sentencepiece model is binary."""
    fields = raw[:400].split(b"\n", 1)[0].split()
    try:
        base64.b64decode(fields[0], validate=True)
        int(fields[1])
    except (IndexError, ValueError, binascii.Error):
        return False
    return len(fields) == 2


def _tiktoken(file: Path, raw: bytes) -> TextEncoder:
    from tiktoken import Encoding

    # Not tiktoken's own reader: it caches by path, and would go on reading a file that has been replaced.
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
            # The splitting rule backtracks over white space and gives up on about a million in a row.
            return np.concatenate([encode_one(part) for part in _LONG_WHITE_SPACE.findall(text)])

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [encode_one(text) for text in texts]

    size = len(ranks) + _LLAMA3_SPECIAL_TOKENS
    return TextEncoder("tiktoken", str(file), _sha256(raw), size, bos_id, eos_id, encode)


def _int32(ids: list[int]) -> np.ndarray:
    # array() reads a list of numbers about twice as fast as numpy does.
    return np.frombuffer(array("i", ids), dtype=np.int32)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
