"""Pools are Megatron's own files; damaged ones are refused."""

from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_longrope2.data.pools import open_pool, write_documents
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import sha256, write_json
from tests.data.conftest import write_manifest


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_documents(tmp_path / "pool", [np.arange(5), np.arange(9)], vocab_size=100)
    return tmp_path / "pool"


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, np.uint16), (128256, np.int32)])
def test_upstream_reads_what_is_written(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    written = [np.array([1, 2, vocab_size - 1]), np.array([3])]
    assert write_documents(tmp_path / "pool", iter(written), vocab_size=vocab_size) == 2
    read = IndexedDataset(str(tmp_path / "pool"))
    assert [document.tolist() for document in (read[0], read[1])] == [w.tolist() for w in written]
    assert read.document_indices.tolist() == [0, 1, 2]
    assert read[0].dtype == dtype


def test_a_refused_document_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="document 1: has no tokens, or ids that are not 0 to 99"):
        write_documents(tmp_path / "pool", [np.arange(5), np.array([3, 100])], vocab_size=100)
    with pytest.raises(InputError, match="document 0: has no tokens, or ids"):
        write_documents(tmp_path / "pool", [np.array([], dtype=int)], vocab_size=100)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pool\.bin: no such file"):
        open_pool(tmp_path / "pool")


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".idx", lambda raw: raw[:-3], "cut off or corrupt"),
        (".idx", lambda raw: raw[:20], "cut off or corrupt"),
        (".idx", lambda raw: b"x" * len(raw), "bad header"),
        (".idx", lambda raw: raw[:9] + b"\x07" + raw[10:], "bad version"),
        (".idx", lambda raw: raw[:34] + b"\xff\xff\xff\xff" + raw[38:], "where its index says"),
        (".bin", lambda raw: raw[:-2], "where its index says"),
    ],
)
def test_a_damaged_file_is_refused(prefix: Path, suffix: str, change: object, message: str) -> None:
    path = prefix.with_suffix(suffix)
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        open_pool(prefix)


def test_an_empty_pool_is_refused(tmp_path: Path) -> None:
    write_documents(tmp_path / "pool", [], vocab_size=100)
    with pytest.raises(InputError, match="holds no document"):
        open_pool(tmp_path / "pool")


def test_a_pool_of_another_tokenizer_is_refused(prefix: Path, huggingface: Path, tiktoken: Path) -> None:
    assert len(open_pool(prefix, vocab_size=9, tokenizer=huggingface)) == 2
    with pytest.raises(InputError, match="holds token id 8, the model's vocabulary has 8"):
        open_pool(prefix, vocab_size=8)
    write_manifest(prefix.parent, Path("llama3/tokenizer.json"), "0")
    with pytest.raises(
        InputError, match=r"made with llama3/tokenizer.json, which is not the model's .*/tokenizer\.json"
    ):
        open_pool(prefix, tokenizer=huggingface)
    # A model that has no file of the kind that the pool was made with is not compared.
    assert len(open_pool(prefix, tokenizer=tiktoken.parent)) == 2
    write_manifest(prefix.parent, Path("tokenizer.json"), sha256(huggingface / "tokenizer.json"))
    assert len(open_pool(prefix, tokenizer=huggingface)) == 2


def test_a_damaged_manifest_is_named(prefix: Path, huggingface: Path) -> None:
    write_json(prefix.with_name("manifest.json"), {"documents": 1})
    with pytest.raises(InputError, match=r"manifest\.json: settings: Field required"):
        open_pool(prefix, tokenizer=huggingface)
