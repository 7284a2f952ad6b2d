"""A sample's estimates hold the truth; what a bucket may need is not passed over."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_longrope2.data import survey as module
from megatron_longrope2.data.selection import Selection
from megatron_longrope2.data.settings import Bucket
from megatron_longrope2.data.survey import Survey, survey
from megatron_longrope2.errors import InputError

SHORT, LONG, LONGER = Bucket("short", 0, 64), Bucket("long", 64, 400), Bucket("longer", 400, None)
BUCKETS = (SHORT, LONG, LONGER)


def encode(texts: list[str]) -> list[np.ndarray]:
    """A token a word."""
    return [np.zeros(len(text.split()), dtype=np.int32) for text in texts]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of 5 to 600 words of three letters or so; long ones are rare, and have most of the tokens."""
    rng = random.Random(1)
    lengths = rng.choices([5, 30, 100, 250, 600], [40, 30, 10, 6, 4], k=3000)
    return [" ".join("x" * rng.randint(2, 4) for _ in range(length)) for length in lengths]


def truth(texts: list[str]) -> dict[Bucket, int]:
    sizes = [len(text.split()) + 1 for text in texts]
    return {bucket: sum(size for size in sizes if bucket.holds(size)) for bucket in BUCKETS}


def check(found: Survey, texts: list[str], close: float) -> None:
    for bucket, tokens in truth(texts).items():
        estimate = found.tokens(bucket)
        assert estimate.low <= tokens <= estimate.high, (bucket, tokens, estimate)
        assert estimate.likely == pytest.approx(tokens, rel=close), (bucket, tokens, estimate)


def write(folder: Path, kind: str, texts: list[str]) -> Path:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if kind == "jsonl":
        (folder / "a.jsonl").write_bytes(lines)
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=50)
    elif kind == "txt":
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text)
    else:
        # Long enough, and random enough, to be more than a few of the reader's blocks.
        noise = random.Random(2)
        for part in range(6):
            shuffled = noise.sample(texts, len(texts))
            lines = (json.dumps({"text": text, "id": noise.randbytes(len(text)).hex()}) for text in shuffled)
            (folder / f"{part}.json.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt"])
def test_a_whole_text_is_counted(tmp_path: Path, kind: str, texts: list[str]) -> None:
    found = survey(write(tmp_path, kind, texts), "text", encode, 64)
    assert found.complete
    check(found, texts, 0.02)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json.gz", "txt"])
def test_a_sample_says_what_the_text_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, texts: list[str]
) -> None:
    path = write(tmp_path, kind, texts)
    size = sum(file.stat().st_size for file in path.iterdir())
    monkeypatch.setattr(module, "SAMPLE_BYTES", size // 2)
    monkeypatch.setattr(module, "STRETCH_BYTES", 4000)
    monkeypatch.setattr(module, "BEGINNING_BYTES", 200_000 if kind == "json.gz" else 8000)
    found = survey(path, "text", encode, 64)
    assert not found.complete
    assert sum(stretch.size for stretch in found.stretches) < 0.75 * size
    check(found, texts * (6 if kind == "json.gz" else 1), 0.3)
    again = survey(path, "text", encode, 64)
    assert again.tokens(LONG) == found.tokens(LONG)
    assert again.range == found.range


def test_what_the_sample_has_none_of_may_be_in_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    path = write(tmp_path, "jsonl", texts)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 200_000)
    monkeypatch.setattr(module, "STRETCH_BYTES", 4000)
    rare = survey(path, "text", encode, 64).tokens(Bucket("huge", 5000, 10_000))
    assert rare.low == rare.likely == 0
    assert 0 < rare.high < sum(truth(texts).values())


def test_text_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="the documents that were read have no text"):
        survey(tmp_path, "text", encode, 64)


def test_a_selection_wants_what_a_bucket_with_room_may_hold() -> None:
    selection = Selection(BUCKETS, (0, 10, 0), (2.0, 4.0))
    wanted = [n for n in range(3000) if selection.wanted(n, n)]
    assert (wanted[0], wanted[-1]) == (62 * 2 + 1, 400 * 4)
    # Bounds that leave open what the document has.
    assert selection.wanted(0, 200)
    assert not selection.wanted(0, 100)
    assert not selection.wanted(1601, 9999)
    assert not selection.full
    assert selection.without([0, 12, 3]).full
    assert Selection(BUCKETS, (0, 0, 1), (2.0, 4.0)).wanted(10**9, 10**9)
