"""Text becomes pools: all of it, once, in order, however the work is shared out or interrupted."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cyclopts import CycloptsError

from megatron_longrope2.cli import longrope2
from megatron_longrope2.data import preprocess as module
from megatron_longrope2.data.manifest import load_manifest
from megatron_longrope2.data.pools import open_pool
from megatron_longrope2.data.preprocess import Shard, cut, preprocess
from megatron_longrope2.data.settings import PreprocessSettings
from megatron_longrope2.data.tokenizer import load_encoder
from megatron_longrope2.errors import InputError

SHORT = 128


@pytest.fixture
def config(tmp_path: Path, corpus: list[str], huggingface: Path) -> PreprocessSettings:
    (tmp_path / "text").mkdir()
    for half in (0, 1):
        lines = [json.dumps({"text": text}) + "\n" for text in corpus[half::2]]
        (tmp_path / f"text/{half}.jsonl").write_text("".join(lines))
    return PreprocessSettings(
        input=tmp_path / "text", output=tmp_path / "out", tokenizer=huggingface, original_length=SHORT
    )


def expected(corpus: list[str], config: PreprocessSettings) -> list[list[int]]:
    encoder = load_encoder(config.tokenizer)
    bos = [0] if config.add_bos else []
    texts = corpus[0::2] + corpus[1::2]
    return [[*bos, *ids.tolist(), 1] for ids in encoder.encode(texts)]


def read(path: str) -> list[list[int]]:
    pool = open_pool(path)
    return [pool[i].tolist() for i in range(len(pool))]


@pytest.mark.parametrize("add_bos", [False, True])
def test_documents_go_to_their_bucket_with_eos_and_at_most_one_bos(
    config: PreprocessSettings, corpus: list[str], add_bos: bool
) -> None:
    config = replace(config, add_bos=add_bos, long_buckets=(1000, 2500))
    manifest = preprocess(config)
    documents = expected(corpus, config)
    ranges = {"short": (0, SHORT), "long-1000": (SHORT, 1000), "long-2500": (1000, 2500)}
    assert list(manifest.buckets) == list(ranges)
    for name, (low, high) in ranges.items():
        wanted = [document for document in documents if low < len(document) <= high]
        assert read(f"{config.output}/{name}") == wanted
        size = manifest.buckets[name]
        assert (size.documents, size.tokens) == (len(wanted), sum(map(len, wanted)))
    too_long = [document for document in documents if len(document) > 2500]
    assert too_long
    assert manifest.documents_too_long == len(too_long)
    assert manifest.tokens_too_long == sum(map(len, too_long))
    assert manifest.documents == len(documents)
    assert load_manifest(config.output) == manifest


@pytest.mark.parametrize("add_bos", [False, True])
def test_long_documents_are_cut_only_if_asked(
    config: PreprocessSettings, corpus: list[str], add_bos: bool
) -> None:
    config = replace(config, cut_long_documents=True, add_bos=add_bos)
    preprocess(config)
    documents = expected(corpus, config)
    assert read(f"{config.output}/long") == [d for d in documents if len(d) > SHORT]
    pieces = read(f"{config.output}/short")
    assert max(map(len, pieces)) == SHORT
    assert all((piece[0] == 0) == add_bos for piece in pieces)
    joined = [token for piece in pieces for token in piece if token != 0]
    assert joined == [token for document in documents for token in document if token != 0]


def test_cut_repeats_the_first_token_where_it_is_bos() -> None:
    assert [p.tolist() for p in cut(np.arange(8), 4, keep_first=True)] == [
        [0, 1, 2, 3],
        [0, 4, 5, 6],
        [0, 7],
    ]
    assert [p.tolist() for p in cut(np.arange(8), 4, keep_first=False)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_workers_and_shards_do_not_change_the_result(config: PreprocessSettings, tmp_path: Path) -> None:
    one = preprocess(config)
    many = preprocess(replace(config, output=tmp_path / "many", workers=2, shard_size=0.002))
    assert one == many.model_copy(update={"settings": config})
    for name in ("short.bin", "short.idx", "long.bin", "long.idx"):
        assert Path(config.output, name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_a_stopped_run_resumes_from_its_finished_shards(
    config: PreprocessSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, shard_size=0.002)
    reference = preprocess(replace(config, output=tmp_path / "reference"))
    second = Path(config.input, "1.jsonl")
    good = second.read_text()
    second.write_text(good.replace('{"text"', '{"tekst"'))
    with pytest.raises(InputError, match="no text in field"):
        preprocess(config)
    assert not Path(config.output).exists()
    second.write_text(good)
    reused = watch_shards(monkeypatch)
    assert preprocess(config).buckets == reference.buckets
    assert reused
    assert all(before == after for before, after in reused)
    assert not (tmp_path / ".out.shards").exists()


def watch_shards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Times of change, before and after, of the shards that the next run finds finished."""
    times: list[tuple[int, int]] = []
    original = module._build_shards

    def build(shards: dict[Path, Shard], *rest: Any) -> None:
        found = [folder for folder in shards if folder.exists()]
        before = [path.stat().st_mtime_ns for path in found]
        original(shards, *rest)
        times.extend(zip(before, [path.stat().st_mtime_ns for path in found], strict=True))

    monkeypatch.setattr(module, "_build_shards", build)
    return times


def test_a_change_of_settings_does_not_reuse_shards(config: PreprocessSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no document of 100001 or more tokens"):
        preprocess(replace(config, original_length=100_000))
    assert max(map(len, read(f"{preprocess(config).settings.output}/short"))) <= SHORT
    assert not (tmp_path / ".out.shards").exists()


def _die(*_: object) -> None:
    os._exit(9)


def test_a_worker_that_is_killed_is_one_line(
    config: PreprocessSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "build_shard", _die)
    with pytest.raises(InputError, match=r"a worker was killed \(out of memory\?\); run the same command"):
        preprocess(config)


def test_a_full_disk_is_one_line(config: PreprocessSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(InputError, match=r"out: cannot be written: No space left on device"):
        preprocess(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": Path("nowhere")}, "nowhere: no such file or folder"),
        ({"original_length": 100_000}, "no document of 100001 or more tokens; add some"),
        ({"original_length": 4}, "no document of 1 to 4 tokens; add some, cut long ones"),
        ({"long_buckets": (5000, 9000)}, "no document of 5001 to 9000 tokens"),
    ],
)
def test_bad_input_is_refused(config: PreprocessSettings, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocess(replace(config, **changes))  # type: ignore[arg-type]
    assert not Path(config.output).exists()


def test_settings_out_of_order_are_refused(config: PreprocessSettings) -> None:
    with pytest.raises(InputError, match="do not rise"):
        replace(config, long_buckets=(100,))


def test_empty_buckets_may_be_allowed(config: PreprocessSettings) -> None:
    preprocess(replace(config, original_length=100_000, allow_empty_buckets=True))
    assert sorted(p.name for p in Path(config.output).iterdir()) == [
        "manifest.json",
        "short.bin",
        "short.idx",
    ]


def test_an_existing_output_is_not_overwritten(config: PreprocessSettings) -> None:
    preprocess(config)
    with pytest.raises(InputError, match="exists already and is not empty"):
        preprocess(config)


def test_bos_that_the_tokenizer_lacks_is_refused(config: PreprocessSettings, tmp_path: Path) -> None:
    folder = tmp_path / "no_bos"
    shutil.copytree(config.tokenizer, folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="bos_token: the tokenizer has none"):
        preprocess(replace(config, tokenizer=folder, add_bos=True))


def command(config: PreprocessSettings, *options: str) -> None:
    paths = ("--input", config.input, "--output", config.output, "--tokenizer", config.tokenizer)
    words = ("preprocess", *paths, "--original-length", config.original_length, *options)
    longrope2()(list(map(str, words)), exit_on_error=False, print_error=False)


def test_command_line(config: PreprocessSettings, capsys: pytest.CaptureFixture[str]) -> None:
    command(config, "--workers", "2", "--long-buckets", "1000", "2500")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["short", "long-1000", "long-2500"]
    assert lines[3].startswith("dropped as longer than the last bucket: 1 documents")
    with pytest.raises(InputError, match=f"{config.output}: exists already"):
        command(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "0"), "Must be > 0"),
        (("--shard-size", "0"), "Must be > 0"),
        (("--original-length", "1"), "Must be >= 2"),
        (("--long-buckets", "100"), "--long-buckets: .* do not rise"),
        (("--dry-run",), "--dry-run: prints the token table of a mix; give --mix"),
    ],
)
def test_bad_options_are_refused(config: PreprocessSettings, options: tuple[str, ...], message: str) -> None:
    with pytest.raises((InputError, CycloptsError), match=message):
        command(config, *options)
    assert not config.output.exists()
