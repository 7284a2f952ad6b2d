"""A small corpus and small real tokenizers, one of each format."""

import base64
import io
import json
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from megatron_longrope2.data.manifest import Manifest
from megatron_longrope2.data.settings import PreprocessSettings
from megatron_longrope2.files import write_json

WORDS = ["the", "lord", "said", "unto", "moses", "speak", "to", "children", "of", "israel", "and", "land"]


def write_manifest(folder: Path, tokenizer: Path, sha256: str) -> None:
    """The manifest of empty pools that were made with a tokenizer."""
    settings = PreprocessSettings(input=folder, output=folder, tokenizer=tokenizer, original_length=8)
    manifest = Manifest(
        settings=settings,
        tokenizer=tokenizer,
        tokenizer_sha256=sha256,
        buckets={},
    )
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Texts of 3 to 3000 words, with capitals, digits, accents and line ends."""
    lengths = [3, 40, 900, 7, 120, 3000, 15, 60, 1500, 4, 5, 30]
    return [
        f"Chapter {i}: été 1234\n" + " ".join(WORDS[(i + j * j) % len(WORDS)] for j in range(length)) + ".\n"
        for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="session")
def huggingface(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    """Byte-level BPE in a model folder, with a post-processor that adds BOS (it must not be added twice)."""
    folder = tmp_path_factory.mktemp("huggingface")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        vocab_size=350,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        max_sentence_length=100_000,
    )
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def tiktoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks as LLaMA 3 has them: `base64 rank` a line, the 256 bytes first, then merges."""
    merges = [b"th", b"the", b" the", b"in", b"an", b"and", b" and", b"12", b"123", b"\n\n"]
    tokens = [bytes([byte]) for byte in range(256)] + merges
    path = tmp_path_factory.mktemp("tiktoken") / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    return path
